"""What is done to a copy of a device bundle, by name: to a folder, and to a .tar."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from pathlib import Path

from harmony.bench.native_attack import DAMAGES as NATIVE
from harmony.bench.native_attack import Damage
from harmony.core.sealed import MANIFEST, SEAL, SIGNATURES

_BLOCK = 512
_OF_EXECUTORCH = {"path outside, resealed", "no program, resealed"}


def _reseal(bundle: Path, document: object) -> None:
    text = json.dumps(document).encode()
    for name, content in ((MANIFEST, text), (SEAL, f"{hashlib.sha256(text).hexdigest()}  {MANIFEST}\n".encode())):
        _replace(bundle / name, content)


def _replace(path: Path, content: bytes) -> None:
    """A new file: the old one may be a link to bytes that others need."""
    path.unlink()
    path.write_bytes(content)


def _path(rng: random.Random, bundle: Path) -> None:
    """A graph is said to lie outside, where the same bytes do lie."""
    document = json.loads((bundle / MANIFEST).read_bytes())
    role = rng.choice(("exit1", "exit2"))
    name = document["engines"]["onnxruntime"][role]
    forms = (f"../{name}", str(bundle.parent / name), f"./{name}", f"a/../{name}", f"..\\{name}", f"{name}\0", "..")
    outside = rng.choice(forms)
    shutil.copyfile(bundle / name, bundle.parent / name)
    document["files"][outside] = document["files"].pop(name) if rng.random() < 0.5 else document["files"][name]
    document["engines"]["onnxruntime"][role] = outside
    _reseal(bundle, document)


def _other_program(rng: random.Random, bundle: Path) -> None:
    """Something that is no graph, or reaches out of itself, is sealed as one."""
    document = json.loads((bundle / MANIFEST).read_bytes())
    name = document["engines"]["onnxruntime"][rng.choice(("exit1", "exit2"))]
    whole = (bundle / name).read_bytes()
    contents = (
        b"",
        whole[: rng.randrange(len(whole))],
        rng.randbytes(1 + rng.randrange(5000)),
        _external(whole),
        whole.replace(b"Relu", b"Rely"),
        b"\x08\x0a" * 40,
        b"\x3a\xff\xff\xff\xff\x0f",
    )
    content = rng.choice(contents)
    _replace(bundle / name, content)
    document["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    _reseal(bundle, document)


def _external(program: bytes) -> bytes:
    """With a constant, appended, that lies in /etc/passwd: Model.graph (7) of a Graph.initializer (5) of these."""
    entry = b"\x0a\x08location\x12\x0b/etc/passwd"
    tensor = b"\x08\x01\x10\x01\x42\x01e" + b"\x6a" + bytes([len(entry)]) + entry + b"\x70\x01"
    initializer = b"\x2a" + bytes([len(tensor)]) + tensor
    return program + b"\x3a" + bytes([len(initializer)]) + initializer


def _changed(tar: Path, content: bytearray) -> None:
    """Two changes of the same bit are none: then it is cut."""
    tar.write_bytes(content if content != tar.read_bytes() else content[:-1])


def _tar_flip(rng: random.Random, tar: Path) -> None:
    content = bytearray(tar.read_bytes())
    for _ in range(rng.choice((1, 1, 1, 2, 16))):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    _changed(tar, content)


def _tar_cut(rng: random.Random, tar: Path) -> None:
    content = tar.read_bytes()
    ends = (0, 1, _BLOCK, len(content) // 2, len(content) - 1, len(content) - _BLOCK, rng.randrange(len(content)))
    tar.write_bytes(content[: rng.choice(ends)])


def _tar_grow(rng: random.Random, tar: Path) -> None:
    content = tar.read_bytes()
    tar.write_bytes(content + rng.choice((b"\0", bytes(_BLOCK), bytes(20 * _BLOCK), rng.randbytes(999), content)))


def _tar_blocks(rng: random.Random, tar: Path) -> None:
    """Blocks are exchanged, repeated or left out."""
    content = tar.read_bytes()
    blocks = [content[start : start + _BLOCK] for start in range(0, len(content), _BLOCK)]
    one, other = rng.sample(range(len(blocks)), 2)
    what = rng.randrange(3)
    if what == 0:
        blocks[one], blocks[other] = blocks[other], blocks[one]
    elif what == 1:
        blocks.insert(one, blocks[other])
    else:
        del blocks[one]
    _changed(tar, bytearray(b"".join(blocks)))


def _tar_header(rng: random.Random, tar: Path) -> None:
    """A field of a header is another one, and its checksum is right: a link, a device, a path, a size, a name twice."""
    content = bytearray(tar.read_bytes())
    starts = [at for at in range(0, len(content), _BLOCK) if content[at + 257 : at + 262] == b"ustar"]
    at, (first, size, values) = rng.choice(starts), rng.choice(_FIELDS)
    content[at + first : at + first + size] = rng.choice(values)[:size].ljust(size, b"\0")
    content[at + 148 : at + 156] = b" " * 8
    content[at + 148 : at + 156] = b"%06o\0 " % sum(content[at : at + _BLOCK])
    _changed(tar, content)


_FIELDS: tuple[tuple[int, int, tuple[bytes, ...]], ...] = (
    (0, 100, (b"../exit1.onnx", b"/etc/passwd", b"manifest.json", b"a/b", b"..", b"", b"x" * 100, b"-rf", b"\xff")),
    (100, 8, (b"0000777\0", b"0004755\0", b"\x80")),
    (124, 12, (b"77777777777\0", b"00000000000\0", b"00000000001\0", b"-1\0", b"\x80" + b"\xff" * 11, b"zz\0")),
    (136, 12, (b"14000000000\0", b" ")),
    (156, 1, (b"1", b"2", b"3", b"5", b"6", b"7", b"L", b"K", b"x", b"g", b"S", b"\0")),
    (157, 100, (b"/etc/passwd", b"../x", b"exit1.onnx")),
    (257, 8, (b"ustar  \0", b"\0" * 8, b"ustar\x0001")),
    (265, 32, (b"root",)),
    (345, 155, (b"..", b"/etc", b"a")),
)


def _pretend(rng: random.Random, bundle: Path) -> None:
    """Another value in the manifest, sealed again, and the signatures said to be of that, too."""
    before = hashlib.sha256((bundle / MANIFEST).read_bytes()).hexdigest()
    document = json.loads((bundle / MANIFEST).read_bytes())
    document["exits"][rng.randrange(2)]["threshold"] = rng.uniform(-9, 9)
    _reseal(bundle, document)
    if (bundle / SIGNATURES).exists():
        after = hashlib.sha256((bundle / MANIFEST).read_bytes()).hexdigest()
        _replace(bundle / SIGNATURES, (bundle / SIGNATURES).read_bytes().replace(before.encode(), after.encode()))


DAMAGES = (
    *(one for one in NATIVE if one.name not in _OF_EXECUTORCH),
    Damage("path outside, resealed", _path),
    Damage("other program, resealed", _other_program),
    Damage("threshold, signature pretended", _pretend, sealed=True),
)
TAR_DAMAGES = (
    Damage("bytes flipped", _tar_flip),
    Damage("truncated", _tar_cut),
    Damage("grown", _tar_grow),
    Damage("blocks", _tar_blocks),
    Damage("header", _tar_header),
)
