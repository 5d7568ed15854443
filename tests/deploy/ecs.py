"""Validates task definitions against AWS's own description of the call: `python ecs.py BOTOCORES-FOLDER FILE ..` prints what is wrong.

botocore wants another python-dateutil than our tests do, so it lives in a folder of its own (botocore.lock), and only this file,
in a process of its own, imports it.
"""

import json
import sys
from importlib import import_module
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    session, validate = import_module("botocore.session"), import_module("botocore.validate")
    shape = session.Session().get_service_model("ecs").operation_model("RegisterTaskDefinition").input_shape
    for file in sys.argv[2:]:
        report = validate.ParamValidator().validate(json.loads(Path(file).read_text(encoding="utf-8")), shape)
        if report.has_errors():
            print(f"{file}: {report.generate_report()}")
