"""Targets: the same files by a folder, by SSH with Debian's own sshd, and by S3; and what goes wrong there."""

import gzip
import hashlib
import io
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pyrage
import pytest

from piggybank import errors
from piggybank.appliance import store_files
from piggybank.appliance.backups import keeping, manifests, months, secrets, targets, timelines, wal
from piggybank.appliance.backups.manifests import Facts, File, Manifest, Owner
from piggybank.appliance.backups.months import Month
from piggybank.appliance.backups.targets import Target
from piggybank.db import archived
from piggybank.db.recovery import Lineage
from piggybank.settings import Settings
from tests.conftest import require

SSHD = "/usr/sbin/sshd"
ACCESS, SECRET = "access", "secret-of-the-tests"
LARGE_BYTES = 11 * 1024 * 1024 + 7  # more than one part of an upload
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
WAIT_S = 60
FACTS = Facts(
    installation="i",
    schema_revision="0006",
    epoch="e",
    provider_mode="simulator",
    rows={},
    books={},
    highest_transaction=None,
    database_bytes=0,
    postgres_version="18.4",
    postgres_major=18,
)


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Debian's, on loopback, for this user alone."""
    require("sshd", Path(SSHD).exists())
    folder = tmp_path_factory.mktemp("ssh")
    port = store_files.free_ports(1)[0]
    for name in ("host", "client"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    shutil.copy(folder / "client.pub", folder / "authorized_keys")
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
    (folder / "there").mkdir()
    lines = [f"Port {port}", "ListenAddress 127.0.0.1", f"HostKey {folder / 'host'}", f"AuthorizedKeysFile {folder / 'authorized_keys'}"]
    lines += ["StrictModes no", "UsePAM no", "PasswordAuthentication no", "PermitRootLogin yes", "Subsystem sftp internal-sftp"]
    (folder / "config").write_text("\n".join(lines) + "\n")
    Path("/run/sshd").mkdir(exist_ok=True) if os.geteuid() == 0 else None
    process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "config")], stderr=subprocess.DEVNULL)
    _wait_listening(port)
    user = "root" if os.geteuid() == 0 else os.environ["USER"]
    yield Settings(
        data_dir=folder,
        backup_target=f"ssh://{user}@127.0.0.1:{port}{folder}/there",
        backup_ssh_key=str(folder / "client"),
        backup_ssh_known_hosts=str(folder / "known_hosts"),
    )
    process.terminate()
    process.wait()


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A server that speaks S3 and checks signatures."""
    program = Path(sys.executable).with_name("nanio")
    require("nanio", program.exists())
    folder = tmp_path_factory.mktemp("s3")
    (folder / "bank").mkdir()
    port = store_files.free_ports(1)[0]
    process = subprocess.Popen(
        [
            str(program),
            "serve",
            "--data-dir",
            str(folder),
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--no-access-log",
        ],
        env={**os.environ, "NANIO_ACCESS_KEY": ACCESS, "NANIO_SECRET_KEY": SECRET},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _wait_listening(port)
    yield Settings(
        data_dir=folder,
        backup_target="s3://bank/one",
        backup_s3_endpoint=f"http://127.0.0.1:{port}",
        backup_s3_region="us-east-1",
        backup_s3_access_key=ACCESS,
        backup_s3_secret_key=SECRET,
    )
    process.terminate()
    process.wait()


@pytest.fixture
def here(tmp_path: Path) -> Settings:
    (tmp_path / "target").mkdir()
    return Settings(data_dir=tmp_path, backup_target=str(tmp_path / "target"))


@pytest.fixture(params=["here", "sshd", "s3"])
def settings_of_target(request: pytest.FixtureRequest) -> Settings:
    found: Settings = request.getfixturevalue(request.param)
    return found


def _wait_listening(port: int) -> None:
    until = time.monotonic() + WAIT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert time.monotonic() < until
            time.sleep(0.05)
        else:
            return


class CutOff:
    """A source that fails in its middle."""

    def __init__(self) -> None:
        self.left = 9

    def read(self, size: int) -> bytes:
        self.left -= 1
        if not self.left:
            raise ConnectionAbortedError("the other end went away")
        return os.urandom(size)


def test_files_come_back_as_they_were(settings_of_target: Settings) -> None:
    content = gzip.compress(b"x") + os.urandom(LARGE_BYTES)  # what looks compressed must not be unpacked on the way
    with targets.opened(settings_of_target) as target:
        assert targets.shown(settings_of_target.backup_target) == target.shown
        assert target.names("backups") == []
        assert target.put("backups/a/large.gz", io.BytesIO(content)) == len(content)
        assert target.put("backups/b/small", io.BytesIO(b"")) == 0
        with target.open("backups/a/large.gz") as file:
            assert b"".join(iter(lambda: file.read(1024 * 1024), b"")) == content
        assert target.names("backups") == ["backups/a/large.gz", "backups/b/small"]
        target.put("backups/b/small", io.BytesIO(b"again"))
        with target.open("backups/b/small") as file:
            assert file.read() == b"again"
        with pytest.raises(FileNotFoundError):
            target.open("backups/nothing")
        for _ in range(2):
            target.delete("backups/a/large.gz")
        target.delete("backups/b/small")
        assert target.names("backups") == []


def test_what_is_cut_short_has_no_name(settings_of_target: Settings) -> None:
    with pytest.raises(errors.CannotProceed), targets.opened(settings_of_target) as target:
        target.put("backups/c/cut", CutOff())  # type: ignore[arg-type]  # `read` is all that is called
    with targets.opened(settings_of_target) as target:
        assert target.names("backups") == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"backup_target": "/nowhere/at/all"}, "/nowhere/at/all"),
        ({"backup_target": "ssh://somebody@127.0.0.1:1/x"}, "must be set"),
        ({"backup_target": ""}, "no backup target is set"),
        ({"backup_target": "ssh://somebody:hunter2@127.0.0.1:1/x"}, "holds a password"),
    ],
)
def test_a_target_that_is_not_there_is_named(here: Settings, change: dict[str, str], says: str) -> None:
    with pytest.raises(errors.CannotProceed, match=says), targets.opened(msgspec.structs.replace(here, **change)) as target:
        target.put("x", io.BytesIO(b"x"))
    with pytest.raises(errors.CannotProceed) as caught, targets.opened(msgspec.structs.replace(here, **change)) as target:
        target.put("x", io.BytesIO(b"x"))
    assert "hunter2" not in str(caught.value)


def test_a_host_whose_key_is_not_known_is_refused(sshd: Settings, tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")], check=True)
    port = sshd.backup_target.split(":")[2].split("/")[0]
    (tmp_path / "known_hosts").write_text(f"[127.0.0.1]:{port} {(tmp_path / 'other.pub').read_text()}")
    unknown = msgspec.structs.replace(sshd, backup_ssh_known_hosts=str(tmp_path / "known_hosts"))
    with pytest.raises(errors.CannotProceed, match="backup_ssh_known_hosts"), targets.opened(unknown):
        pass
    stranger = msgspec.structs.replace(sshd, backup_ssh_key=str(tmp_path / "other"))
    with pytest.raises(errors.CannotProceed, match="ermission denied"), targets.opened(stranger):
        pass


def test_files_on_another_host_are_for_their_owner_alone(sshd: Settings) -> None:
    with targets.opened(sshd) as target:
        target.put("backups/private/file", io.BytesIO(b"amounts"))
        place = sshd.data_dir / "there" / "backups" / "private"
        assert ((place / "file").stat().st_mode & 0o777, place.stat().st_mode & 0o777) == (0o600, 0o700)
        target.delete("backups/private/file")


def test_a_wrong_secret_and_a_missing_bucket_are_told(s3: Settings) -> None:
    for change in ({"backup_s3_secret_key": "wrong"}, {"backup_target": "s3://no-such-bucket/x"}):
        with pytest.raises(errors.CannotProceed) as caught, targets.opened(msgspec.structs.replace(s3, **change)) as target:
            target.put("x", io.BytesIO(b"x"))
        assert SECRET not in str(caught.value)


def test_a_full_target_is_told_and_left_as_it_was() -> None:
    if os.geteuid() != 0:
        require("mount", available=False)
    place = Path("/run") / f"piggybank-full-{os.getpid()}"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(place)], check=True)
    try:
        settings = Settings(data_dir=place, backup_target=str(place))
        with pytest.raises(errors.CannotProceed, match="No space left"), targets.opened(settings) as target:
            target.put("backups/a/b", io.BytesIO(os.urandom(2 * 1024 * 1024)))
        assert [path for path in place.rglob("*") if path.is_file()] == []
    finally:
        subprocess.run(["umount", str(place)], check=True)
        place.rmdir()


def test_the_recovery_key_and_no_other_opens_the_secrets(tmp_path: Path) -> None:
    key, other = secrets.new_key(), secrets.new_key()
    (tmp_path / "stores").mkdir()
    (tmp_path / "stores" / "secrets.toml").write_text('admin_password = "planted-password"\n')
    bundle = secrets.sealed(Settings(data_dir=tmp_path, backup_recipient=key.recipient, revio_key="planted-key"))
    assert b"planted" not in bundle
    opened = secrets.opened(bundle, key.identity, key.recipient)
    assert b"planted-password" in opened["stores/secrets.toml"]
    assert b"planted-key" in opened[secrets.EFFECTIVE]
    with pytest.raises(errors.CannotProceed, match="does not open") as caught:  # and it says which one does: keys are rotated
        secrets.opened(bundle, other.identity, key.recipient)
    assert key.recipient in str(caught.value)
    with pytest.raises(errors.CannotProceed, match="no recovery key"):
        secrets.opened(bundle, "hunter2", key.recipient)


def manifest(number: int, age_h: int, first_wal: str = "") -> Manifest:
    taken = datetime.fromtimestamp(NOW.timestamp() - age_h * 3_600, UTC)
    return Manifest(
        id=f"{taken:%Y%m%dT%H%M%S}Z-{'base' if first_wal else 'logical'}",
        kind="base" if first_wal else "logical",
        version=str(number),
        phase=0,
        started_at=taken,
        taken_at=taken,
        finished_at=taken,
        facts=FACTS,
        files=[],
        first_wal=first_wal,
        system="7" if first_wal else "",
    )


def put_backup(target: Target, made: Manifest) -> str:
    file = manifests.put(target, f"backups/{made.id}/data", io.BytesIO(b"data"))
    manifests.save(target, msgspec.structs.replace(made, files=[file]))
    return made.id


def test_old_backups_go_with_their_log_and_the_newest_good_one_never(here: Settings) -> None:
    with targets.opened(here) as target:
        newest, middle, old = (
            put_backup(target, manifest(number, age_h, f"0000000{timeline}00000000000000{segment}"))
            for number, age_h, timeline, segment in ((1, 1_000, 2, "30"), (2, 1_010, 1, "20"), (3, 2_000, 1, "10"))
        )
        target.put("backups/20261101T000000Z-base/base.tar.gz", io.BytesIO(b"cut short"))
        segments = ["000000010000000000000010", "000000010000000000000029", "000000020000000000000031", "00000002.history"]
        for name in segments:
            target.put(f"wal/7/{name}.gz", io.BytesIO(b""))
        target.put("wal/6/000000010000000000000099.gz", io.BytesIO(b""))  # of a cluster of which no base backup is left
        assert [found.id for found in manifests.listed(target)] == [newest, middle, old]
        assert keeping.prune(target, keep=2, keep_days=365, now=NOW) == [old]
        assert [wal.segment(name) for name in target.names("wal")] == [segments[1], segments[3], segments[2]]
        assert keeping.prune(target, keep=2, keep_days=1, now=NOW) == [middle]
        assert target.names("backups") == [f"backups/{newest}/data", f"backups/{newest}/manifest.json"]
        dump = put_backup(target, manifest(4, 1))
        assert keeping.prune(target, keep=1, keep_days=365, now=NOW) == [newest]
        assert (target.names("wal"), [found.id for found in manifests.listed(target)]) == ([], [dump])  # no log without a base


def test_a_tampered_file_a_short_one_and_a_missing_one_are_named(here: Settings) -> None:
    with targets.opened(here) as target:
        backup_id = put_backup(target, manifest(1, 1))
        file = manifests.load(target, backup_id).files[0]
        manifests.check(target, file)
        for content, says in ((b"dat!", "checksum"), (b"dat", "3 bytes of 4")):
            target.put(file.name, io.BytesIO(content))
            with pytest.raises(errors.CannotProceed, match=says):
                manifests.check(target, file)
        target.delete(file.name)
        with pytest.raises(errors.CannotProceed, match="missing"):
            manifests.check(target, file)
        with pytest.raises(errors.CannotProceed, match="no backup nothing"):
            manifests.load(target, "nothing")


def test_one_target_is_of_one_installation_and_one_server(here: Settings) -> None:
    with targets.opened(here) as target:
        manifests.check_owner(target, lineage("ours"), claim=True)
        manifests.check_owner(target, lineage("ours"))
        with pytest.raises(errors.CannotProceed, match="another installation"):
            manifests.check_owner(target, lineage("theirs"), claim=True)
        spool = wal.spool_of(here.data_dir)
        spool.mkdir(parents=True)
        name, known, done = "000000010000000000000001", set[str](), []

        def ship() -> int:
            return wal.ship(here.data_dir, target, "7", known, lambda *newest: done.append(newest[0]))

        (spool / f"{name}.gz").write_bytes(gzip.compress(b"one"))
        (spool / ".half").write_bytes(b"being written")
        assert ship() == 1
        (spool / f"{name}.gz").write_bytes(gzip.compress(b"one", 9))  # its end was not noticed: again, and the same
        assert ship() == 1
        (spool / f"{name}.gz").write_bytes(gzip.compress(b"two"))
        with pytest.raises(errors.CannotProceed, match="second server"):
            ship()
        assert (done, (spool / f"{name}.gz").exists()) == ([name, name], True)


def lineage(installation: str, *restores: str) -> Lineage:
    return Lineage(installation=installation, restores=list(restores), point=NOW if restores else None)


def test_a_copy_that_was_restored_and_finished_takes_the_target_from_the_old_one(here: Settings) -> None:
    with targets.opened(here) as target:
        manifests.check_owner(target, lineage("ours"), claim=True)
        manifests.take_over(target, Owner(installation="ours", restore="first", since=NOW))
        manifests.check_owner(target, lineage("ours", "first"))
        with pytest.raises(errors.CannotProceed, match="the old one"):
            manifests.check_owner(target, lineage("ours"), claim=True)
        assert manifests.superseded_since(target, lineage("ours")) == NOW
        assert manifests.superseded_since(target, lineage("theirs")) is None
        # restored from the one that has it, and finished while the target was away: it takes it when it makes its first backup
        assert manifests.superseded_since(target, lineage("ours", "first", "second")) is None
        manifests.check_owner(target, lineage("ours", "first", "second"), claim=True)
        assert manifests.superseded_since(target, lineage("ours", "first")) == NOW


def test_one_manifest_that_cannot_be_read_hides_no_other(here: Settings) -> None:
    with targets.opened(here) as target:
        good = put_backup(target, manifest(1, 5))
        bad = put_backup(target, manifest(2, 1))
        target.put(f"backups/{bad}/manifest.json", io.BytesIO(b"{"))
        said: list[str] = []
        assert [found.id for found in manifests.listed(target, said.append)] == [good]
        assert bad in said[0]
        assert manifests.choose(target, "latest").id == good
        assert keeping.prune(target, keep=5, keep_days=365, now=NOW + timedelta(days=9)) == []
        assert f"backups/{bad}/data" in target.names("backups")  # for people to look at


def test_a_moment_is_restored_from_a_base_backup_also_where_a_newer_dump_is(here: Settings) -> None:
    with targets.opened(here) as target:
        base = put_backup(target, manifest(1, 5, "000000010000000000000010"))
        put_backup(target, manifest(2, 1))
        assert manifests.choose(target, "latest", NOW).id == base


def test_names_that_lead_out_of_a_backup_are_refused(here: Settings, tmp_path: Path) -> None:
    (tmp_path / "passwd").write_text("root")
    with targets.opened(here) as target:
        made = manifest(1, 1)
        for name in ("../passwd", f"backups/{made.id}/../../../passwd", "/etc/passwd"):
            manifests.save(target, msgspec.structs.replace(made, files=[File(name=name, size_bytes=4, sha256="")]))
            with pytest.raises(errors.CannotProceed, match="not in its folder"):
                manifests.load(target, made.id)
        with pytest.raises(errors.CannotProceed, match="no backup's id"):
            manifests.load(target, "../target/backups")
    key = secrets.new_key()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("keys/../../../etc/cron.d/job"))
    recipient = pyrage.x25519.Recipient.from_str(key.recipient)
    with pytest.raises(errors.CannotProceed, match="what does not belong there"):  # whoever writes there can encrypt to a public key
        secrets.opened(bytes(pyrage.encrypt(packed.getvalue(), [recipient])), key.identity, key.recipient)


def test_a_full_spool_gives_up_the_newest_and_says_so(here: Settings) -> None:
    spool = wal.spool_of(here.data_dir)
    spool.mkdir(parents=True)
    names = [f"0000000100000000000000{number:02X}" for number in range(5)]
    for name in names:
        (spool / f"{name}.gz").write_bytes(os.urandom(1024 * 1024))
    assert wal.give_up_beyond(here.data_dir, max_mib=5, leaves_mib=0) == 0
    assert wal.noted_hole(here.data_dir) == ""
    assert wal.give_up_beyond(here.data_dir, max_mib=3, leaves_mib=0) == 2
    assert [wal.segment(path.name) for path in wal.waiting(here.data_dir)] == names[:3]
    assert names[2] in wal.noted_hole(here.data_dir)
    assert wal.give_up_beyond(here.data_dir, max_mib=3, leaves_mib=2**40) == 3  # a disk that runs short: writes go first
    wal.note_hole(here.data_dir, "")
    assert wal.noted_hole(here.data_dir) == ""
    (spool / "00000002.history.gz").write_bytes(b"1")
    assert wal.give_up_beyond(here.data_dir, max_mib=3, leaves_mib=2**40) == 0
    assert [path.name for path in wal.waiting(here.data_dir)] == ["00000002.history.gz"], "without it nothing of a timeline is restored"


def test_a_segment_that_was_cut_off_is_seen(tmp_path: Path) -> None:
    whole = gzip.compress(bytes(timelines.SEGMENT_BYTES))
    path = tmp_path / "0000000100000000000000FD.gz"
    path.write_bytes(whole)
    wal.check_whole(path)
    for content, says in ((whole[:-2000], "end-of-stream"), (whole[:-8] + bytes(8), "CRC"), (gzip.compress(b"x"), "1 bytes of")):
        path.write_bytes(content)
        with pytest.raises(errors.CannotProceed, match=says):
            wal.check_whole(path)


def test_archived_months_go_along_and_come_back(here: Settings, tmp_path: Path) -> None:
    folder = here.data_dir / archived.FOLDER
    folder.mkdir()
    content = b"rows of January"
    month = Month(file="transactions-2026-01.parquet", sha256=hashlib.sha256(content).hexdigest())
    (folder / month.file).write_bytes(content)
    with targets.opened(here) as target:
        known = set[str]()
        months.ship(here.data_dir, target, known)
        assert known == set()  # its description comes when the file is whole
        (folder / "transactions-2026-01.json").write_bytes(msgspec.json.encode({"file": month.file, "sha256": month.sha256, "rows": 1}))
        months.ship(here.data_dir, target, known)
        gone = Month(file="transactions-2026-02.parquet", sha256="0" * 64)
        assert months.missing([month, gone], target.names(months.FOLDER)) == [gone.file]
        assert months.fetch(target, [month, gone], tmp_path / "again", None) == [gone.file]
        assert (tmp_path / "again" / "archive" / month.file).read_bytes() == content
        assert (tmp_path / "again" / "archive" / "transactions-2026-01.json").is_file()
        target.put(f"archive/{month.sha256}.parquet", io.BytesIO(b"altered"))
        assert months.fetch(target, [month], tmp_path / "third", None) == [month.file]


@pytest.mark.deep
def test_a_bucket_lists_more_than_one_page(s3: Settings) -> None:
    """A page of a listing has at most 1,000 names: a log of a day has 2,880."""
    with targets.opened(s3) as target:
        names = [f"wal/pages/{number:024X}.gz" for number in range(1_050)]
        for name in names:
            target.put(name, io.BytesIO(b""))
        assert target.names("wal/pages") == names
        for name in names:
            target.delete(name)
