"""A folder on another host, by SFTP. The host's key must be known beforehand, and we sign in with a key: no password is ever asked for.

asyncssh speaks in an event loop; a thread has it, so that a stream of a backup can be read and written like any other file.
"""

import asyncio
import posixpath
import threading
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, TypeVar, cast
from urllib.parse import unquote, urlsplit

import asyncssh

CONNECT_TIMEOUT_S = 15
CHUNK_BYTES = 1024 * 1024
PART = ".part"

T = TypeVar("T")


class SshFolder:
    """One connection; see `targets.Target`."""

    place: Path | None = None

    def __init__(self, address: str, root: str) -> None:
        self.shown = address
        self._root = root
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="ssh", daemon=True)
        self._thread.start()
        self._connection: asyncssh.SSHClientConnection | None = None
        self._sftp: asyncssh.SFTPClient | None = None

    @classmethod
    def of(cls, address: str, key: str, known_hosts: str) -> "SshFolder":
        """Connect; raises OSError, saying what is wrong."""
        parts = urlsplit(address)
        if not key or not known_hosts:
            raise OSError("backup_ssh_key and backup_ssh_known_hosts must be set")
        for path in (key, known_hosts):
            if not Path(path).is_file():
                raise OSError(f"there is no file {path}")
        made = cls(address, parts.path or ".")
        try:
            made._do(made._connect(parts.hostname or "", parts.port or 22, unquote(parts.username or ""), key, known_hosts))
        except BaseException:
            made.close()
            raise
        return made

    async def _connect(self, host: str, port: int, user: str, key: str, known_hosts: str) -> None:
        self._connection = await asyncssh.connect(
            host,
            port,
            username=user or (),
            client_keys=[key],
            known_hosts=known_hosts,
            password_auth=False,
            kbdint_auth=False,
            gss_host=None,
            agent_path=None,
            config=None,
            connect_timeout=CONNECT_TIMEOUT_S,
            login_timeout=CONNECT_TIMEOUT_S,
            keepalive_interval=CONNECT_TIMEOUT_S,
        )
        self._sftp = await self._connection.start_sftp_client()

    def put(self, name: str, source: IO[bytes]) -> int:
        sftp, path = self._open_sftp(), posixpath.join(self._root, name)
        if not self._do(sftp.isdir(self._root)):
            raise NotADirectoryError(f"{self._root} is no folder there")
        self._do(sftp.makedirs(posixpath.dirname(path), asyncssh.SFTPAttrs(permissions=0o700), exist_ok=True))
        size, making = 0, path + PART
        try:
            file = self._do(self._open_file(making, "wb"))
            try:
                while chunk := source.read(CHUNK_BYTES):
                    self._do(file.write(chunk))
                    size += len(chunk)
                with suppress(asyncssh.SFTPError):  # an extension of OpenSSH
                    self._do(file.fsync())
            finally:
                self._do(file.close())
            self._do(sftp.posix_rename(making, path))
        except BaseException:
            with suppress(OSError):
                self._do(sftp.remove(making))
            raise
        return size

    def open(self, name: str) -> IO[bytes]:
        file = self._do(self._open_file(posixpath.join(self._root, name), "rb"))
        return cast("IO[bytes]", _Reading(self, file))

    async def _open_file(self, path: str, mode: str) -> asyncssh.SFTPClientFile:
        # amounts and names are in it: nobody else's over there, whatever the usual mode is
        return await self._open_sftp().open(path, mode, asyncssh.SFTPAttrs(permissions=0o600))

    def names(self, folder: str) -> list[str]:
        return sorted(self._do(self._walk(folder)))

    async def _walk(self, folder: str) -> list[str]:
        sftp, found = self._open_sftp(), []
        try:
            entries = await sftp.readdir(posixpath.join(self._root, folder))
        except asyncssh.SFTPNoSuchFile:
            return []
        for entry in entries:
            name = entry.filename.decode() if isinstance(entry.filename, bytes) else entry.filename
            if name in (".", ".."):
                continue
            if entry.attrs.type == asyncssh.FILEXFER_TYPE_DIRECTORY:
                found += await self._walk(posixpath.join(folder, name))
            elif not name.endswith(PART):
                found.append(posixpath.join(folder, name))
        return found

    def delete(self, name: str) -> None:
        sftp, path = self._open_sftp(), posixpath.join(self._root, name)
        with suppress(FileNotFoundError):
            self._do(sftp.remove(path))
        with suppress(OSError):  # the last of its folder
            self._do(sftp.rmdir(posixpath.dirname(path)))

    def close(self) -> None:
        if self._connection is not None:
            with suppress(OSError):
                self._do(_closed(self._connection))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CONNECT_TIMEOUT_S)

    def _run(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    def _open_sftp(self) -> asyncssh.SFTPClient:
        assert self._sftp is not None
        return self._sftp

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        """Raises FileNotFoundError and OSError for what the library calls otherwise."""
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop).result()
        except asyncssh.SFTPNoSuchFile as cause:
            raise FileNotFoundError(str(cause)) from cause
        except asyncssh.HostKeyNotVerifiable as cause:
            raise OSError(f"its host key is not the one in backup_ssh_known_hosts: {cause}") from cause
        except (asyncssh.Error, TimeoutError) as cause:
            raise OSError(str(cause) or type(cause).__name__) from cause


async def _closed(connection: asyncssh.SSHClientConnection) -> None:
    connection.close()
    await connection.wait_closed()


class _Reading:
    """A file over there, read from its beginning to its end."""

    def __init__(self, folder: SshFolder, file: asyncssh.SFTPClientFile) -> None:
        self._folder = folder
        self._file = file
        self.closed = False

    def read(self, size: int = -1) -> bytes:
        return cast("bytes", self._folder._do(self._file.read(size)))  # noqa: SLF001 - its own other half

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._folder._do(self._file.close())  # noqa: SLF001 - its own other half

    def __enter__(self) -> "_Reading":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
