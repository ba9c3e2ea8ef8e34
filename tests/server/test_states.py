"""States as an asset: sealed and moved, kept under names, over HTTP; and what is no state, or is somebody else's."""

import asyncio
import base64
import contextlib
import dataclasses
import json
import os
import resource
import signal
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import ml_dtypes
import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.responses import JSONResponse

from bert4keras_rwkv.config import RWKVConfig
from bert4keras_rwkv.server.places import Place
from bert4keras_rwkv.server.protocol import ApiError
from bert4keras_rwkv.server.seal import Seal, read_key
from bert4keras_rwkv.server.state_files import ROOM, StateKind, packed, unpacked
from bert4keras_rwkv.server.state_routes import state_routes
from bert4keras_rwkv.server.states import LINE, States, new_id
from bert4keras_rwkv.state import RWKVState
from bert4keras_rwkv.weights.states import write_state
from tests.models.small import SIZES, VERSIONS

pytestmark = pytest.mark.backend_free
KEY = b"k" * 32
KIND = StateKind("finch/1", RWKVConfig.from_dict({**SIZES, **VERSIONS["6"]}))
KINDS = [
    KIND,
    StateKind("raven", RWKVConfig.from_dict({**SIZES, **VERSIONS["4"]})),
    StateKind("finch/1", KIND.config, "bfloat16"),
]


def place(seed=0, waiting=(3, 39), count=7, kind=KIND):
    generator = np.random.default_rng(seed)
    shapes = RWKVState.shapes(kind.config)
    wkv, shift = (
        generator.standard_normal((1, *shape)).astype(dtype) for shape, dtype in zip(shapes, kind.dtypes, strict=True)
    )
    return Place(RWKVState(wkv, shift, kind.config.model), waiting, count)


def same(one, other):
    for name in ("wkv", "shift"):
        a, b = getattr(one.state, name), getattr(other.state, name)
        assert a.dtype == b.dtype and np.array_equal(a, b)
    return one[1:] == other[1:] and one.state.model == other.state.model


@contextlib.contextmanager
def refused(status, field=None, code=None):
    with pytest.raises(ApiError) as told:
        yield told
    error = told.value.body["error"]
    assert (told.value.status, error["param"], error["code"]) == (status, field, code)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.fingerprint} {kind.dtype}")
def test_a_sealed_place_goes_on_on_any_server_with_the_key(kind):
    given = place(kind=kind)
    sealed = json.loads(json.dumps(Seal(KEY, kind).sealed(given)))
    assert sealed["tokens"] == 7 and sealed["bytes"] == len(base64.b64decode(sealed["data"]))
    assert len(json.dumps(sealed)) <= Seal(KEY, kind).longest
    assert same(Seal(KEY, kind).opened(sealed), given)
    with refused(400, "state", "state_signature"):
        Seal(b"another" * 5, kind).opened(sealed)
    with refused(400, "state", "state_model"):
        Seal(KEY, dataclasses.replace(kind, fingerprint="finch/2")).opened(sealed)


def changed(sealed, place):
    """The same with one bit of the bytes another."""
    data = bytearray(base64.b64decode(sealed["data"]))
    data[place] ^= 1
    return {**sealed, "data": base64.b64encode(data).decode()}


@pytest.mark.parametrize(
    "code, forge",
    [
        ("state_signature", lambda s: changed(s, -1)),
        ("state_signature", lambda s: changed(s, 0)),
        ("state_signature", lambda s: changed(s, base64.b64decode(s["data"]).index(b"[3,"))),
        ("state_signature", lambda s: {**s, "data": s["data"][:400]}),
        ("state_signature", lambda s: {**s, "data": ""}),
        ("state_signature", lambda s: {**s, "signature": ""}),
        ("state_signature", lambda s: {**s, "signature": "0" * 64}),
        ("invalid_state", lambda s: {**s, "signature": "é" * 64}),
        ("invalid_state", lambda s: {**s, "signature": None}),
        ("invalid_state", lambda s: {**s, "data": s["data"][:401]}),
        ("invalid_state", lambda s: {**s, "data": "\ud800" * 8}),
        ("invalid_state", lambda s: {**s, "data": "A" * (4 * KIND.largest)}),
        ("invalid_state", lambda s: {**s, "data": [s["data"]]}),
        ("invalid_state", lambda s: {name: s[name] for name in ("object", "model", "tokens", "data")}),
        ("invalid_state", lambda s: {}),
        ("invalid_state", lambda s: [s]),
        ("invalid_state", lambda s: "sess_0"),
        ("invalid_state", lambda s: None),
    ],
)
def test_what_this_key_did_not_seal_is_refused(code, forge):
    seal = Seal(KEY, KIND)
    with refused(400, "state", code):
        seal.opened(forge(seal.sealed(place())))


def test_a_seal_does_not_vouch_for_what_is_in_it():
    """A state that went bad is sealed as any other, and refused when it comes back."""
    seal, bad = Seal(KEY, KIND), place()
    bad.state.wkv[0, 1, 0, 0, 0] = np.nan
    with refused(400, "state", "invalid_state"):
        seal.opened(seal.sealed(bad))
    with refused(400, "return_state", "invalid_state"):
        seal.sealed(place(waiting=(3,) * ROOM, count=ROOM))
    with pytest.raises(ValueError, match="at least 32 bytes"):
        Seal(b"short", KIND)


def header(data, change):
    """A safetensors file whose header is `change(header)`."""
    size = 8 + int.from_bytes(data[:8], "little")
    said = json.dumps(change(json.loads(data[8:size]))).encode()
    return len(said).to_bytes(8, "little") + said + data[size:]


def said(**texts):
    """A good file, but for these texts of its header."""
    return header(packed(place(), KIND), lambda h: h | {"__metadata__": h["__metadata__"] | texts})


def of(wkv=None, shift=None, model="rwkv6"):
    state = place().state
    state = RWKVState(state.wkv if wkv is None else wkv, state.shift if shift is None else shift, model)
    return state.to_bytes()


def full(value, dtype="float32"):
    return np.full((1, *RWKVState.shapes(KIND.config)[0]), value, dtype)


GOOD = packed(place(), KIND)
HOSTILE = {
    "nothing": b"",
    "few": b"{}",
    "a long header": (2**63).to_bytes(8, "little") + b"{}",
    "a longer header": b"\xff" * 8 + b"{" * 99,
    "a header of everything": (len(GOOD)).to_bytes(8, "little") + GOOD[8:],
    "deep": (100_000).to_bytes(8, "little") + b'{"a":' * 20_000,
    "deep metadata": header(GOOD, lambda h: h | {"__metadata__": json.loads('{"a":' * 50 + "1" + "}" * 50)}),
    "metadata are numbers": header(GOOD, lambda h: h | {"__metadata__": {"format": 1}}),
    "cut short": GOOD[:-1],
    "cut in the header": GOOD[:99],
    "longer": GOOD + b"\0",
    "a shape of 2^64": header(GOOD, lambda h: h | {"wkv": h["wkv"] | {"shape": [2**32, 2**32]}}),
    "a negative shape": header(GOOD, lambda h: h | {"wkv": h["wkv"] | {"shape": [-1, 2, 2, 8, 8]}}),
    "tensors over each other": header(GOOD, lambda h: h | {"wkv": h["wkv"] | {"data_offsets": [0, 1024]}}),
    "a tensor more": header(GOOD, lambda h: h | {"x": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}),
    "NaN": of(full(np.nan)),
    "infinite": of(full(-np.inf)),
    "too large for float32": of(full(1e300, "float64")),
    "whole numbers": header(GOOD, lambda h: h | {"wkv": h["wkv"] | {"dtype": "I32"}}),
    "bits": of(shift=np.zeros((1, 4, 1, 16), "bool")),
    "another model": of(model="rwkv7"),
    "another width": of(np.zeros((1, 2, 2, 4, 4), "float32")),
    "two texts": place().state.fork(2).to_bytes(),
    "no text": place().state[[]].to_bytes(),
    "of 2 and 1": of(np.zeros((2, 2, 2, 8, 8), "float32")),
    "a negative count": said(count="-1"),
    "a count that is none": said(count="nan"),
    "a count of other digits": said(count="٣"),
    "an endless count": said(count="9" * 5000),
    "fewer tokens than wait": said(count="1"),
    "an id out of the vocabulary": said(waiting="[40]"),
    "a negative id": said(waiting="[-1]"),
    "a huge id": said(waiting=f"[{2**70}]"),
    "no id": said(waiting="[true]"),
    "ids in ids": said(waiting="[[1, 2]]"),
    "ids that are none": said(waiting="{"),
    "deep ids": said(waiting="[" * 50_000),
    "a state of these weights' kin": said(fingerprint="finch/2"),
    "another layout": said(layout="[value, key]"),
    "a zip": b"PK\x03\x04" + bytes(100),
    "a pickle": b"\x80\x02cos\nsystem\nX\x04\0\0\0true\x85R.",
}


@pytest.fixture
def states(tmp_path):
    return States(KIND, tmp_path / "kept", {"tuned": place(9).state})


def app_of(states):
    """The routes alone."""
    app = FastAPI()

    async def told(request, error):
        return JSONResponse(error.body, error.status, error.headers)

    app.add_exception_handler(ApiError, told)
    app.include_router(state_routes(states, Seal(KEY, KIND), lambda request: "me"))
    return app


def client(states):
    """A function that asks the routes over HTTP."""
    transport = httpx.ASGITransport(app_of(states))

    def ask(method, path, **options):
        async def once():
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
                return await http.request(method, path, **options)

        return asyncio.run(once())

    return ask


OCTETS = {"Content-Type": "application/octet-stream"}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_is_no_state_is_a_400(name, states):
    answer = client(states)("POST", "/states", content=HOSTILE[name], headers=OCTETS)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == "body" and len(error["message"]) < 2000
    assert error["code"] in ("invalid_state", "state_model") and "/tmp" not in error["message"]
    assert [one["id"] for one in states.list("me")] == ["tuned"]


def test_two_servers_that_share_a_folder_take_turns(tmp_path):
    """Of a session, and of the room that there is; each sees what the other keeps."""
    one, two = (States(KIND, tmp_path, most=2) for _ in range(2))
    id = new_id()
    one.put(id, "me", place(0))
    order = []

    async def turn(states, name):
        async with states.turn(id, "me"):
            order.append(name)
            kept = states.get(id, "me")
            await asyncio.sleep(0.1)
            states.put(id, "me", kept.then((5,)))
            order.append(name)

    async def both():
        await asyncio.gather(*(turn(*pair) for pair in ((one, 1), (two, 2), (one, 1), (two, 2))))

    asyncio.run(both())
    assert order[::2] == order[1::2]
    assert two.get(id, "me").count == place(0).count + 4
    two.put("mine", "me", place(1))
    assert {state["id"] for state in one.list("me")} == {id, "mine"}
    with refused(507, "id", "states_full"):
        one.put("third", "me", place(2))


def test_what_is_no_file_is_no_state(tmp_path):
    states = States(KIND, tmp_path)
    states.put("mine", "me", place(0))
    (file,) = tmp_path.glob("*/*.safetensors")
    file.unlink()
    file.mkdir()
    assert States(KIND, tmp_path).list("me") == []
    with refused(404, "id", "state_not_found"):
        states.get("mine", "me")


def test_states_over_http(states, tmp_path):
    """The way of a conversation: returned by one server, kept under a name by another, forked, fetched, deleted."""
    ask, given = client(states), place(1)
    kept = ask("POST", "/states", json={"id": "mine", "state": Seal(KEY, KIND).sealed(given)}).json()
    assert kept["id"] == "mine" and kept["kind"] == "uploaded" and kept["tokens"] == 7 and kept["parent"] is None
    assert ask("GET", "/states/mine").json() == kept
    fork = ask("POST", "/states/mine/fork", json={}).json()
    assert fork["id"].startswith("sess_") and fork["kind"] == "session" and fork["parent"] == "mine"
    named = ask("POST", "/states", json={"from": "tuned", "id": "mine-too"}).json()
    listed = ask("GET", "/states").json()
    assert listed["object"] == "list" and listed["data"][0]["kind"] == "named"
    assert {one["id"] for one in listed["data"]} == {"tuned", "mine", fork["id"], "mine-too"}
    assert named in listed["data"] and kept in listed["data"]
    assert same(Seal(KEY, KIND).opened(ask("GET", f"/states/{fork['id']}/sealed").json()), given)

    file = ask("GET", "/states/mine/download")
    assert file.headers["content-disposition"] == 'attachment; filename="mine.safetensors"'
    (tmp_path / "mine.safetensors").write_bytes(file.content)
    loaded = RWKVState.load(tmp_path / "mine.safetensors")
    assert np.array_equal(loaded.wkv, given.state.wkv) and np.array_equal(loaded.shift, given.state.shift)
    again = ask("POST", "/states", content=file.content, headers=OCTETS, params={"id": "again"}).json()
    assert again["tokens"] == 7 and same(states.get("again", "me"), given)
    assert ask("POST", "/states", content=file.content, headers=OCTETS).json()["id"].startswith("state_")

    assert ask("DELETE", "/states/mine").json() == {"id": "mine", "object": "state.deleted", "deleted": True}
    for method, path in (("GET", ""), ("GET", "/download"), ("GET", "/sealed"), ("POST", "/fork"), ("DELETE", "")):
        answer = ask(method, f"/states/mine{path}", **({"json": {}} if method == "POST" else {}))
        assert answer.status_code == 404 and answer.json()["error"]["code"] == "state_not_found"
    assert same(states.get(fork["id"], "me"), given)


@pytest.mark.parametrize("name, layout", [("a.pth", "auto"), ("a.st", "st"), ("a.safetensors", "own")])
def test_files_of_other_programs(states, tmp_path, name, layout):
    state = place().state
    state = RWKVState(state.wkv.astype("float16").astype("float32"), np.zeros_like(state.shift), "rwkv6")
    write_state(tmp_path / name, state)
    options = {"content": (tmp_path / name).read_bytes(), "headers": OCTETS}
    kept = client(states)("POST", "/states", params={"id": "other", "layout": layout}, **options).json()
    assert kept["tokens"] == 0 and np.array_equal(states.get("other", "me").state.wkv, state.wkv)


@pytest.mark.parametrize(
    "id", ["../x", "a/b", "", ".", "a" * 65, "a" * 10_000, "é", "a\n", "٣", "a.b", "-", "\ud800", 7]
)
def test_ids_that_are_none(states, id):
    with refused(400, "session_id"):
        states.put(id, "me", place(), field="session_id")
    with refused(404, "session_id", "state_not_found"):
        states.get(id, "me", field="session_id")
    body = json.dumps({"id": id, "from": "tuned"})
    answer = client(states)("POST", "/states", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "id"
    with pytest.raises(ValueError, match="name"):
        States(KIND, None, {id: place().state})


def test_bodies_that_ask_for_nothing_or_too_much(states):
    ask, sealed = client(states), Seal(KEY, KIND).sealed(place())
    for body in ({}, {"state": sealed, "from": "tuned"}, {"state": [1]}, {"state": "tuned"}):
        answer = ask("POST", "/states", json=body)
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "state"
    assert ask("POST", "/states", json={"from": "nothing"}).json()["error"]["param"] == "from"
    assert ask("POST", "/states", json={"state": sealed, "id": "tuned"}).status_code == 409
    assert ask("DELETE", "/states/tuned").status_code == 403
    assert ask("GET", "/states/..%2Fx").status_code == 404
    assert ask("POST", "/states", content=bytes(8 << 20), headers=OCTETS).status_code == 413
    assert ask("POST", "/states", content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    assert ask("POST", "/states/tuned/fork").status_code == 415  # a form of another site's page has no such type
    assert ask("POST", "/states/tuned/fork", json={"id": "x" * (1 << 17)}).status_code == 413


@pytest.mark.parametrize("folder", [True, False])
def test_a_state_is_its_owners(folder, tmp_path):
    states, ids = States(KIND, tmp_path if folder else None, {"tuned": place(9).state}), [new_id(), "same"]
    for number, owner in enumerate(("me", "you")):
        states.put("same", owner, place(number))
    states.put(ids[0], "me", place(2))
    assert same(states.get("same", "me"), place(0)) and same(states.get("same", "you"), place(1))
    assert [one["id"] for one in states.list("you")] == ["tuned", "same"]
    for attempt in (states.get, states.about, states.delete, states.fork):
        with refused(404, "id", "state_not_found"):
            attempt(ids[0], "you")
    states.delete("same", "you")
    assert {one["id"] for one in states.list("me")} == {"tuned", *ids}
    with refused(409, "id", "state_exists"):
        states.add("same", "me", place())
    assert np.array_equal(states.get("tuned", "you").state.wkv, place(9).state.wkv)


def test_a_restart_finds_what_was_kept(tmp_path, caplog):
    states, id = States(KIND, tmp_path), new_id()
    states.put(id, "me", place(0), parent="tuned")
    first = states.about(id, "me")
    states.put(id, "me", place(1, count=9))
    assert States(KIND, tmp_path).about(id, "me") == {**first, "tokens": 9} and first["parent"] == "tuned"
    assert same(States(KIND, tmp_path).get(id, "me"), place(1, count=9))
    (file,) = tmp_path.glob("*/*")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert not caplog.records
    other = States(dataclasses.replace(KIND, fingerprint="finch/2"), tmp_path)
    assert not other.list("me") and "1 other models" in caplog.text


def test_a_damaged_file_harms_nothing_else(tmp_path):
    states = States(KIND, tmp_path)
    states.put("good", "me", place(0))
    before = set(tmp_path.glob("*/*"))
    states.put("bad", "me", place(1))
    (file,) = set(tmp_path.glob("*/*")) - before
    file.write_bytes(file.read_bytes()[:-9])
    with refused(500, "id", "state_damaged"):
        states.get("bad", "me")
    file.write_bytes(b"\xff" * 20)
    assert [one["id"] for one in states.list("me")] == ["good"]
    states.put("bad", "me", place(2))
    assert same(states.get("bad", "me"), place(2))


WRITER = """
import sys
from tests.server.test_states import KIND, States, place
states = States(KIND, sys.argv[1])
for number in range(10**6):
    states.put(f"sess_{number % 5}", "me", place(number))
    print(number, flush=True)
"""


def test_what_put_has_kept_survives_kill_9(tmp_path):
    """Each session is the last one that was said to be kept, or the one that was being written."""
    with subprocess.Popen([sys.executable, "-c", WRITER, tmp_path], stdout=subprocess.PIPE, text=True) as writer:
        said = [int(writer.stdout.readline()) for _ in range(12)]
        writer.send_signal(signal.SIGKILL)
        said += [int(line) for line in writer.stdout]
    states = States(KIND, tmp_path)
    for number in range(said[-1] - 4, said[-1] + 1):
        kept = states.get(f"sess_{number % 5}", "me")
        allowed = [place(number), place(number + 5)][: 1 + (number + 5 == said[-1] + 1)]
        assert any(np.array_equal(kept.state.wkv, one.state.wkv) for one in allowed)
    assert len(states.list("me")) == 5


def test_a_full_disk(states):
    states.put("mine", "me", place(0))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 10, limits[1]))
    try:
        for id in ("mine", "other"):
            with refused(507, "id", "insufficient_storage") as told:
                states.put(id, "me", place(1))
            assert "File too large" in str(told.value)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert same(states.get("mine", "me"), place(0))
    assert [one["id"] for one in states.list("me")] == ["tuned", "mine"]
    states.put("other", "me", place(1))


@pytest.mark.parametrize("folder", [True, False])
@pytest.mark.parametrize("limits", [{"most": 2}, {"largest": 2 * len(GOOD) + 900}])
def test_what_finds_no_room_is_refused_and_nothing_is_lost(tmp_path, folder, limits):
    states = States(KIND, tmp_path if folder else None, **limits)
    for number in range(2):
        states.put(f"sess_{number}", "me", place(number))
    with refused(507, "id", "states_full") as told:
        states.put("sess_2", "me", place(2))
    assert "sess_0" in str(told.value)
    with refused(507, "id", "states_full") as told:
        states.put("sess_2", "you", place(2))
    assert "sess_0" not in str(told.value)
    states.put("sess_1", "me", place(3))
    states.delete("sess_0", "me")
    states.put("sess_2", "you", place(2))
    assert same(states.get("sess_1", "me"), place(3)) and same(states.get("sess_2", "you"), place(2))


@pytest.mark.parametrize("limits", [{"most": 3}, {"largest": 3 * len(GOOD) + 900}])
def test_the_oldest_responses_make_room(tmp_path, limits):
    """For each other, for sessions, and after a restart; a session never does."""
    states = States(KIND, tmp_path, **limits)
    for id in ("sess_0", "resp_2", "resp_1", "resp_0"):
        states.put(id, "me", place(), note=id)
    assert [one["id"] for one in states.list("me")] == ["resp_0", "resp_1", "sess_0"]
    assert {one["kind"] for one in states.list("me")} == {"response", "session"}
    states = States(KIND, tmp_path, **limits)
    assert states.note("resp_0", "me") == "resp_0"
    states.put("sess_1", "you", place())
    with refused(404, "id", "state_not_found"):
        states.get("resp_1", "me")
    states.put("sess_2", "you", place())
    with refused(507, "id", "states_full"):
        states.put("resp_3", "you", place())
    assert [one["id"] for one in states.list("me")] == ["sess_0"]


def test_many_threads_at_once(states):
    """An id is added once; limits count right afterwards."""

    def add(number):
        try:
            states.add(f"id{number % 4}", "me", place(number))
        except ApiError as error:
            return error.status

    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(add, range(32)))
    assert told.count(None) == 4 and told.count(409) == 28
    assert len(states.list("me")) == 5


def test_turns_of_one_session_come_in_order_and_end_with_those_who_leave(states):
    order = []

    async def turn(number, id="sess_1"):
        async with states.turn(id, "me"):
            order.append(number)
            await asyncio.sleep(0.01)
            order.append(number)

    async def all_at_once():
        async with states.turn("sess_1", "me"):
            waiting = [asyncio.create_task(turn(number)) for number in range(LINE)]
            await asyncio.sleep(0.01)
            with refused(429, None, "rate_limit_exceeded"):
                await turn(99)
            await turn("other", "sess_2")
            waiting[1].cancel()
        await asyncio.wait(waiting)
        assert waiting[1].cancelled()
        running = asyncio.create_task(turn("left"))
        await asyncio.sleep(0.005)
        running.cancel()
        await turn("last")

    asyncio.run(all_at_once())
    numbers = [number for number in range(LINE) if number != 1]
    assert order == ["other"] * 2 + [number for number in numbers for _ in range(2)] + ["left", "last", "last"]


def test_a_state_is_not_deleted_while_it_is_written(states):
    """A turn would keep it again. Whoever deletes waits."""
    states.put("sess_1", "me", place())
    transport = httpx.ASGITransport(app_of(states))

    async def both():
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            async with states.turn("sess_1", "me"):
                deleting = asyncio.create_task(http.delete("/states/sess_1"))
                await asyncio.sleep(0.05)
                assert not deleting.done()
                states.put("sess_1", "me", place(1))
            return (await deleting).status_code, (await http.get("/states/sess_1")).status_code

    assert asyncio.run(both()) == (200, 404)


def test_states_of_another_dtype_and_named_ones_are_checked(tmp_path):
    """A float32 state goes on in a bfloat16 model; one that does not fit is refused before anything is served."""
    narrow = KINDS[2]
    back, _ = unpacked(packed(place(), KIND), narrow)
    assert back.state.shift.dtype == ml_dtypes.bfloat16 and back.state.wkv.dtype == np.float32
    with pytest.raises(ValueError, match="wants wkv"):
        States(KIND, None, {"tuned": place(kind=KINDS[1]).state})
    with pytest.raises(ValueError, match="not finite"):
        States(KIND, None, {"tuned": RWKVState(full(np.inf), place().state.shift)})


def test_keys(tmp_path, caplog):
    path = tmp_path / "key"
    command = [
        sys.executable,
        "-c",
        "import sys; from bert4keras_rwkv.server.seal import *; print(read_key(sys.argv[1]))",
    ]
    several = [subprocess.Popen([*command, path], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    told = {one.communicate()[0] for one in several}
    assert told == {f"{read_key(path)}\n"} and len(read_key(path)) == 64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and not caplog.records
    path.chmod(0o644)
    read_key(path)
    assert "Others can read" in caplog.text
    path.write_bytes(b" too short \n")
    with pytest.raises(ValueError, match="9 bytes"):
        read_key(path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe"):
        read_key(tmp_path / "pipe")
