"""Files in World format: what is read, what is refused and how that is said."""

import importlib.util
import os
import subprocess
import sys

import pytest

from bert4keras_rwkv.tokenizers import RWKV_TOKENIZER
from bert4keras_rwkv.tokenizers.vocabulary import read_vocabulary, world_path, write_vocabulary

pytestmark = pytest.mark.backend_free

BYTES = {byte + 1: bytes([byte]) for byte in range(256)}


def lines(entries):
    return [
        f"{i} {token.decode('latin-1')!r} 1" if token < b"\x80" else f"{i} {token!r} 1" for i, token in entries.items()
    ]


def written(path, extra=(), end="\n", drop=()):
    kept = [line for i, line in enumerate(lines(BYTES)) if i not in drop]
    path.write_bytes("".join(line + end for line in [*kept, *extra]).encode())
    return path


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_reads_both_line_ends(tmp_path, end):
    path = written(
        tmp_path / "v.txt", ["257 '  ' 2", '258 "it\'s" 4', "259 '你好' 6", r"260 b'\xe4\xbd' 2", r"261 '\r\n' 2"], end
    )
    entries = read_vocabulary(path)
    assert entries == BYTES | {257: b"  ", 258: b"it's", 259: "你好".encode(), 260: b"\xe4\xbd", 261: b"\r\n"}


def test_last_line_may_lack_its_end(tmp_path):
    path = tmp_path / "v.txt"
    path.write_bytes("\n".join(lines(BYTES)).encode())
    assert RWKV_TOKENIZER(path).vocab_size == 257


@pytest.mark.parametrize(
    "line, says",
    [
        ("", "not of this form"),
        ("257 'ab'", "not of this form"),
        ("'ab' 257 2", "not of this form"),
        ("-1 'ab' 2", "not of this form"),
        ("257 ab 2", "not Python"),
        ("257 'a' + 'b' 2", "not Python"),
        ("257 __import__('os').getcwd() 2", "not Python"),
        ("257 'a'b' 3", "not Python"),
        ("257 12 2", "not Python"),
        ("257 ((((((((((((((((((((((((((((('a' 2", "not Python"),
        ("257 " + "-" * 100_000 + " 2", "not Python"),
        ("257 'a' 'b' 2", "not Python"),
        ("257 'a\\qb' 3", "not Python"),
        ("257 '\\N{DASH}' 3", "not Python"),
        ("257 b'\\u4e2d' 3", "not Python"),
        ("257 '" + "x" * 70_000 + "\\n' 70001", "not Python"),
        ("9" * 5000 + " 'ab' 2", "not of this form"),
        ("2147483647 'ab' 2", "an id lies in 1"),
        ("257 '你好' 2", "the length says 2 bytes, the token has 6"),
        ("257 '' 0", "the token is empty"),
        ("0 'ab' 2", "an id lies in 1"),
        ("98 'ab' 2", "id 98 was given before, to b'a'"),
        ("257 'a' 1", "the token b'a' was given before, on line 98"),
        (r"257 '\ud800' 3", "surrogate"),
    ],
)
def test_bad_line_is_named(tmp_path, line, says):
    path = written(tmp_path / "v.txt", [line, "258 'cd' 2"])
    with pytest.raises(ValueError, match="line 257: ") as caught:
        RWKV_TOKENIZER(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)


def test_not_utf8(tmp_path):
    path = written(tmp_path / "v.txt")
    path.write_bytes(path.read_bytes() + b"257 '\xff\xfe' 2\n")
    with pytest.raises(ValueError, match="line 257: the line is not UTF-8"):
        RWKV_TOKENIZER(path)


def test_a_binary_file_is_refused_shortly(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"PK\x03\x04" + bytes(10_000))
    with pytest.raises(ValueError, match=r"line 1: not of this form.* more bytes") as caught:
        RWKV_TOKENIZER(path)
    assert len(str(caught.value)) < 700


def test_missing_bytes_are_named(tmp_path):
    path = written(tmp_path / "v.txt", drop=(0, 65))
    with pytest.raises(ValueError, match=r"Missing: 0x00, 0x41 \(2 in all\)"):
        RWKV_TOKENIZER(path)
    with pytest.raises(ValueError, match="256 in all"):
        RWKV_TOKENIZER.from_entries({})


@pytest.mark.parametrize("entry", [{0: b"ab"}, {"257": b"ab"}, {257: "ab"}, {257: b""}])
def test_entries_are_checked(entry):
    with pytest.raises(ValueError, match=r"ids .*from 1.* to tokens .*bytes"):
        RWKV_TOKENIZER.from_entries(BYTES | entry)


def test_entry_twice():
    with pytest.raises(ValueError, match="Received: b'a' with several ids"):
        RWKV_TOKENIZER.from_entries(BYTES | {257: b"a"})


def test_gaps_are_ids_that_do_not_exist():
    tokenizer = RWKV_TOKENIZER.from_entries(BYTES | {300: b"ab"})
    assert tokenizer.vocab_size == 301
    assert tokenizer.encode("ab") == [300]
    with pytest.raises(ValueError, match=r"with gaps.*id 299 at position 1"):
        tokenizer.decode([300, 299])


def test_save_and_read_again(tmp_path):
    entries = BYTES | {
        257: b"it's",
        258: "你".encode(),
        259: b"\xe4\xbd",
        260: b"\\n\n\r",
        261: b' "',
        262: "\u2028\x85".encode(),
    }
    RWKV_TOKENIZER.from_entries(entries).save(tmp_path / "vocab.txt")
    assert read_vocabulary(tmp_path / "vocab.txt") == entries
    assert os.listdir(tmp_path) == ["vocab.txt"]


def test_world_vocabulary_is_written_as_published(tmp_path):
    write_vocabulary(tmp_path / "v.txt", read_vocabulary(world_path()))
    assert (tmp_path / "v.txt").read_bytes() == world_path().read_bytes().replace(b"\r\n", b"\n")


def test_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = written(tmp_path / "v.txt")
    before = path.read_bytes()

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_vocabulary(path, BYTES)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["v.txt"]


def test_without_the_rwkv_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install rwkv.*path"):
        RWKV_TOKENIZER()


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        RWKV_TOKENIZER(tmp_path / "none.txt")


def test_world_loads_nothing_heavy():
    code = (
        "import sys; from bert4keras_rwkv.tokenizers import RWKV_TOKENIZER; RWKV_TOKENIZER();"
        "heavy = {'rwkv', 'torch', 'keras', 'jax', 'tensorflow', 'numpy'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
