"""Files with keys: secrets that only their owner may read, made, and read with bounds. No torch."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from harmony.core.errors import ConfigError
from harmony.core.storage import storing

MAX_BYTES = 64 << 10


def write_secret(path: Path, content: bytes) -> None:
    """Write a file that never, not for a moment, others may read (mode 0600). Makes the folders above it.

    ConfigError if there is anything at `path` (of two writers at once, one wins), StorageError if the disk refuses.
    """
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            mend = "choose another name"
            raise ConfigError("is there already, and no key is overwritten", where=path, mend=mend) from None
        try:
            with os.fdopen(handle, "wb") as stream:
                os.fchmod(handle, 0o600)  # whatever the umask took away
                stream.write(content)
                stream.flush()
                os.fsync(handle)
        except OSError:
            path.unlink(missing_ok=True)
            raise


def read_secret(path: Path) -> bytes:
    """As `read_key_file`; ConfigError, too, for a file that others may read."""
    content, mode = read_key_file(path)
    if mode & 0o077:
        raise ConfigError("may be read by others", where=path, mend=f"chmod 600 {path}, or make a new key")
    return content


def read_key_file(path: Path) -> tuple[bytes, int]:
    """What a plain file of at most MAX_BYTES holds, and its permissions. ConfigError for any other."""
    try:
        # Not blocking: a pipe in the file's place would be waited for.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError("is not a plain file", where=path, mend="give a key file")
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", where=path, mend="check the path") from None
    if len(content) > MAX_BYTES:
        raise ConfigError(f"is larger than {MAX_BYTES} bytes", where=path, mend="give a key file")
    return content, stat.S_IMODE(status.st_mode)
