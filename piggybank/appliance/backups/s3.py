"""A bucket of an S3-compatible service, by pyarrow's file system."""

import os
from contextlib import suppress
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs as pa_fs

from piggybank.settings import Settings

CHUNK_BYTES = 1024 * 1024
S3_TIMEOUT_S = 30.0


class S3:
    """A bucket, or a prefix in one; see `targets.Target`. An object appears when its upload is complete."""

    def __init__(self, settings: Settings, bucket: str, prefix: str) -> None:
        endpoint = urlsplit(settings.backup_s3_endpoint)
        if endpoint.netloc:  # AWS's library frames parts with checksums; many a compatible service would store the frames, too
            os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
        self._fs = pa_fs.S3FileSystem(
            access_key=settings.backup_s3_access_key or None,
            secret_key=settings.backup_s3_secret_key or None,
            region=settings.backup_s3_region or None,
            endpoint_override=endpoint.netloc or None,
            scheme=endpoint.scheme or "https",
            connect_timeout=S3_TIMEOUT_S,
            request_timeout=S3_TIMEOUT_S,
        )
        self._root = "/".join(part for part in (bucket, prefix) if part)
        self.shown = f"s3://{self._root}"
        self.place: Path | None = None

    def put(self, name: str, source: IO[bytes]) -> int:
        size = 0
        stream = self._fs.open_output_stream(f"{self._root}/{name}", compression=None)
        try:
            while chunk := source.read(CHUNK_BYTES):
                stream.write(chunk)
                size += len(chunk)
        except BaseException:
            # closing completes an upload: what was cut short is completed, and taken away again
            with suppress(OSError, pa.ArrowException):
                stream.close()
            with suppress(OSError, pa.ArrowException):
                self._fs.delete_file(f"{self._root}/{name}")
            raise
        stream.close()
        return size

    def open(self, name: str) -> IO[bytes]:
        return self._fs.open_input_stream(f"{self._root}/{name}", compression=None)  # type: ignore[no-any-return]

    def names(self, folder: str) -> list[str]:
        selector = pa_fs.FileSelector(f"{self._root}/{folder}", recursive=True, allow_not_found=True)
        found = [info.path for info in self._fs.get_file_info(selector) if info.type == pa_fs.FileType.File]
        return sorted(path.removeprefix(f"{self._root}/") for path in found)

    def delete(self, name: str) -> None:
        path = f"{self._root}/{name}"
        try:
            self._fs.delete_file(path)
        except FileNotFoundError:
            pass
        except OSError:  # the library puts a mark where the file's folder was, which a service may refuse
            if self._fs.get_file_info(path).type != pa_fs.FileType.NotFound:
                raise

    def close(self) -> None:
        """There is nothing to close."""
