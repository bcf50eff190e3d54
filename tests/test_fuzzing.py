"""Whatever a file, a message or a URL holds: accepted and valid, or refused by one clear line.

About 3,600 inputs, the same ones in every run.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import sqlalchemy as sa
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from oialr_search.space.hyperparameters import with_hyperparameters
from oialr_search.space.search_file import SearchFile, load_search
from oialr_search.storage.opening import display_name, parse_url
from oialr_search.storage.records import StorageError
from oialr_training.config import TrainingConfig
from oialr_training.errors import ConfigError, ProtocolError
from oialr_training.protocol import (
    Completed,
    Epoch,
    EpochPart,
    Evaluate,
    Failed,
    Observation,
    Prepare,
    Progressed,
    RankUpdate,
    Ready,
    Resources,
    Started,
    Stop,
    Stopped,
    decode,
    encode,
)
from oialr_training.tasks import load_training, validate_training
from oialr_training.yaml_files import dump_yaml, parse_yaml

from .conftest import DIGITS, SEARCH_SPACES, Command

LINE_CHARACTERS = 500
SEARCH_FILES = sorted(SEARCH_SPACES.glob("*.yaml"))
TRAINING_FILES = sorted((SEARCH_SPACES / "training").glob("*.yaml"))
FILES = [*SEARCH_FILES * (len(TRAINING_FILES) // len(SEARCH_FILES)), *TRAINING_FILES]


def inputs(number: int) -> Callable[[Any], Any]:
    """So many inputs, drawn alike in every run; one of half a minute is a failure."""
    return settings(
        max_examples=number,
        derandomize=True,
        database=None,
        deadline=30_000,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file to write the input to."""
    return tmp_path_factory.mktemp("fuzzing") / "fuzzed.yaml"


def assert_clear(error: Exception, name: str = "") -> None:
    """One printable line of a bearable length for each mistake; it names the file."""
    *lines, last = str(error).split("\n")
    if not last.endswith(" mistakes more"):
        lines.append(last)
    assert lines
    for line in lines:
        assert line.isprintable()
        assert len(line) <= LINE_CHARACTERS
        assert name in line


# --- Trees: real content, a few places of which are spoilt


class Pairs(list[list[Any]]):
    """A mapping that may give a key twice."""


class Raw(str):
    """Text that stands in the document as it is."""

    __slots__ = ()


def tree(content: Any) -> Any:
    """Content whose every place can be changed."""
    if isinstance(content, dict):
        return Pairs([key, tree(value)] for key, value in content.items())
    return [tree(part) for part in content] if isinstance(content, list | tuple) else content


def written(content: Any) -> str:
    """A tree in JSON, which is YAML too."""
    match content:
        case Raw():
            return content
        case Pairs():
            return f"{{{', '.join(f'{written(k)}: {written(v)}' for k, v in content)}}}"
        case list():
            return f"[{', '.join(map(written, content))}]"
        case _:
            return json.dumps(content)


def places(content: Any) -> list[tuple[Any, int]]:
    """Each value's container and index."""
    match content:
        case Pairs():
            here = [(pair, 1) for pair in content]
        case list():
            here = [(content, index) for index in range(len(content))]
        case _:
            return []
    return here + [inner for container, index in here for inner in places(container[index])]


def mappings(content: Any) -> list[Pairs]:
    """All mappings of a tree."""
    parts = [container[index] for container, index in places(content)]
    return [part for part in (content, *parts) if isinstance(part, Pairs)]


ALIASES = [
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]"
    for before, name in zip("abcdefghijk", "bcdefghijkl", strict=True)
]
LAUGHS = f"{{a: &a [l, l, l], {', '.join(ALIASES)}, z: *l}}"
MERGES = LAUGHS.replace("[l, l, l]", "{l: 1}").replace("[", "{<<: [").replace("]", "]}")
CHAIN = f"[&a0 [x], {', '.join(f'&a{n + 1} [*a{n}]' for n in range(900))}]"
JSON_SNIPPETS = [
    *("NaN", "Infinity", "-Infinity", "1e999", "-1e-999", "1E400", "-0", "-0.0", "9" * 400),
    *("9" * 5000, "-" + "9" * 19, "1." + "3" * 9000, "1e" + "0" * 3000),
    *(
        r'"\ud800"',
        r'"\u0000"',
        r'"\u202e\u2028"',
        '"\U0001f9d1‍\U0001f680"',
        '"%s"' % ("x" * 70000),
    ),
    *("[" * 60 + "]" * 60, "[" * 500, '{"a": ' * 70 + "1" + "}" * 70, '{"a": 1, "a": 2}'),
    *("[]", "{}", "[null]", '{"": 1}', f"[{'7, ' * 500}7]"),
]
YAML_SNIPPETS = [
    *("0o17", "017", "0x%s" % ("f" * 9000), "0b1", "1_000", "1:30", "1:30.5", "+.5e3", "1e5", ".5"),
    *(
        "1" + ":59" * 3000,
        "2024-01-01",
        "2024-99-99",
        "2024-01-01 10:00:00Z",
        "yes",
        "on",
        "~",
        "=",
    ),
    *(".nan", ".inf", "-.INF", "!!float .5", "!!float ''", "!!float x", "!!int ''", "!!int 0x1f"),
    *(
        "!!bool x",
        "!!null x",
        "!!timestamp x",
        "!!binary aGk=",
        "!!binary é",
        "!!str [a]",
        "!!set {a}",
    ),
    *(
        "!!omap [a: 1]",
        "!!pairs [a: 1]",
        "!!python/object:os.system x",
        "!x y",
        "!",
        "!!str {=: x}",
    ),
    *("!<%s> x" % ("y" * 2000), "&x [*x]", "&x {a: *x}", "&x {<<: *x, b: 1}", "&x {<<: [*x, *x]}"),
    *(
        "*nowhere",
        "*" + "n" * 3000,
        "&x 1, &x 2",
        "<<",
        "{<<: 1}",
        "{<<: {1: 2, a: 3}}",
        "{? [a]: b}",
    ),
    *(
        "{1: a, 1.5: b}",
        "{~: a}",
        "{true: a}",
        "{2024-01-01: a}",
        LAUGHS,
        MERGES,
        CHAIN,
        "'",
        '"',
        "|",
    ),
    *(
        "- - - a",
        "a: b: c",
        "{",
        "]",
        "#",
        "%YAML 9.9",
        "...",
        "---",
        "\t",
        r'"\x"',
        r'"\U00110000"',
    ),
    *("\0", "\x1b[31m", "\x85", "\u2028", "\ufeff", "\ud7ff", r'"a\nb"', "'a\n\n  b'", "\x7f"),
]
YAML_SNIPPETS += JSON_SNIPPETS
NEAR = [0, 1, -1, 2, 3, 5, 16, 24, 64, 100, 2**31, 2**32, 2**63 - 1, 2**63, 0.5, 1e-3, 0.999, 1.0]
NEAR += [
    -0.5,
    1.5,
    1e300,
    5e-324,
    1.7e308,
    True,
    False,
    None,
    "",
    "auto",
    "cpu",
    "lr",
    "1e5",
    ".nan",
]
NEAR += [
    "null",
    "True",
    "0o7",
    "2024-01-01",
    "~",
    "a: b",
    "best",
    "cosine",
    "type1",
    "é\u202e",
    "x\ny",
]
RANGES = [
    {"low": 1, "high": 3},
    {"low": 0.1, "high": 0.5, "scale": "log"},
    {"low": 24, "high": 960},
    {"low": -1.7e308, "high": 1.7e308},
    {"low": 1, "high": 1.7e308, "scale": "log"},
    {"low": 2**53, "high": 2**63 - 1},
    {"choices": [32, 48, 64]},
    {"choices": [True, False]},
    {"choices": [1, True]},
    {"choices": ["together", "apart"]},
    {"choices": [None, 1]},
    {"low": 1, "high": 2, "choices": [1, 2]},
]
KEYS = [
    "",
    "a.b",
    "lr",
    "optimizer",
    "space",
    "model.embed_dim",
    "model.num_heads",
    "oialr.keep_dense",
]
KEYS += [
    "optimizer.betas",
    "scheduler.name",
    "data.auto_augment",
    "provenance",
    "x\ny",
    "\x1b[2J",
    "é",
]
KEYS += [
    "k" * 3000,
    "\u202e",
    "name",
    "low",
    "choices",
    "seed",
    "epochs.x",
    "optimizer.",
    ".",
    "<<",
]
KEYS += ["model.image_size", "model.moving_average", "batch_size", "type", "metrics", "at"]

leaves = st.one_of(
    st.sampled_from(NEAR),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.none(),
    st.booleans(),
)


def values(snippets: Sequence[str]) -> st.SearchStrategy[Any]:
    """Values of all sorts."""
    nested = st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KEYS), inner, max_size=3)
        ),
        max_leaves=6,
    )
    return st.one_of(
        nested, st.sampled_from(RANGES), st.sampled_from([Raw(text) for text in snippets])
    )


def spoilt(contents: Sequence[Any], snippets: Sequence[str]) -> st.SearchStrategy[str]:
    """Documents in which up to three places are spoilt."""

    @st.composite
    def draw_document(draw: st.DrawFn) -> str:
        content = tree(draw(st.sampled_from(contents)))
        for _ in range(draw(st.integers(1, 3))):
            container, index = draw(st.sampled_from(places(content)))
            mapping = draw(st.sampled_from(mappings(content)))
            pair = draw(st.integers(0, max(len(mapping) - 1, 0)))
            value = tree(draw(values(snippets)))
            key = draw(st.one_of(st.sampled_from(KEYS), st.just(value)))
            match draw(st.integers(0, 7)):
                case 0 if mapping:
                    del mapping[pair]
                case 1 if mapping:
                    mapping[pair][0] = key
                case 2 if mapping:
                    mapping.append(list(mapping[pair]))
                case 3:
                    mapping.append([key, value])
                case 4:
                    container[index] = [container[index]]
                case 5:
                    container[index] = Pairs([[key, container[index]]])
                case _:
                    container[index] = value
            assume(places(content))
        return written(content)

    return draw_document()


@st.composite
def damaged(draw: st.DrawFn, texts: Sequence[bytes]) -> bytes:
    """A file cut off, spliced, encoded otherwise, or of no sense at all."""
    raw = draw(st.sampled_from(texts))
    start, end = sorted(draw(st.tuples(st.integers(0, len(raw)), st.integers(0, len(raw)))))
    symbols = st.text(alphabet="{}[]:,&*!|>'\"%@`#-? \n\t\rab01.<~=é\\", max_size=60)
    symbols_or_bytes = symbols.map(str.encode) | st.binary(max_size=40)
    filling = draw(symbols_or_bytes)
    return draw(
        st.sampled_from(
            [
                raw[:end],
                raw[start:],
                raw[:start] + filling + raw[start:],
                raw[:start] + filling + raw[end:],
                raw[:start] + raw[start:end] * 2 + raw[end:],
                raw[:start] + raw[start:].replace(b"\n", b"\r\n"),
                b"\xef\xbb\xbf" + raw[:start] + b"\xef\xbb\xbf" + raw[start:],
                raw.decode().encode("utf-16"),
                filling,
                filling * 40,
            ]
        )
    )


def dotted(content: dict[str, Any], prefix: str = "") -> list[str]:
    """The paths of all values."""
    inner = [path for k, v in content.items() if isinstance(v, dict) for path in dotted(v, f"{k}.")]
    return [prefix + path for path in (*content, *inner)]


PATHS = sorted({path for file in FILES for path in dotted(yaml.safe_load(file.read_bytes()))})
PATHS += [f"space.{path}" for path in PATHS]


# --- Search files and training configurations


def load_and_check(path: Path, assignments: Sequence[str] = ()) -> None:
    """The file is accepted and valid, or refused clearly."""
    load = load_search if b"search" in path.read_bytes() else load_training
    try:
        loaded = load(path, assignments)
    except ConfigError as error:
        assert_clear(error, "--set" if "(--set" in str(error) else path.name)
    else:
        assert_valid(loaded, path.with_name("again.yaml"))


def assert_valid(loaded: SearchFile | TrainingConfig, again: Path) -> None:
    """It survives YAML and the database; what its space gives can be trained."""
    if not isinstance(loaded, SearchFile):
        again.write_text(dump_yaml(loaded.model_dump(mode="json")))
        assert load_training(again) == loaded
        return
    json.dumps(loaded.as_json(), allow_nan=False).encode()
    training = loaded.training.model_dump(mode="json")
    space = {
        h.name: {"choices": list(h.choices)}
        if h.choices
        else {"low": h.low, "high": h.high, "scale": h.scale}
        for h in loaded.space.hyperparameters
    }
    content = training | {"search": loaded.search.model_dump(mode="json"), "space": space}
    again.write_text(dump_yaml(content))
    read_back = load_search(again)
    assert read_back.as_json() == loaded.as_json()
    assert read_back.space == loaded.space
    draw = random.Random(7).random
    for gene in (lambda: 0.0, lambda: 1.0, draw, draw, draw):
        drawn = loaded.space.decode({h.name: gene() for h in loaded.space.hyperparameters})
        assert all(math.isfinite(v) for v in drawn.values() if isinstance(v, int | float))
        validate_training(with_hyperparameters(training, drawn), "decoded")


@inputs(120)
@given(document=spoilt([yaml.safe_load(file.read_bytes()) for file in FILES], YAML_SNIPPETS))
def test_spoilt_files(path: Path, document: str) -> None:
    path.write_bytes(document.encode("utf-8", "surrogatepass"))
    load_and_check(path)


@inputs(250)
@given(raw=damaged([file.read_bytes() for file in FILES]))
def test_damaged_files(path: Path, raw: bytes) -> None:
    path.write_bytes(raw)
    load_and_check(path)


@inputs(300)
@given(
    file=st.sampled_from(FILES),
    keys=st.lists(
        st.one_of(
            st.sampled_from(PATHS),
            st.sampled_from(PATHS),
            st.sampled_from([*KEYS, "space.low", "search", "search.islands", "a." * 9000]),
            st.text(max_size=8),
        ),
        min_size=1,
        max_size=2,
    ),
    given_values=st.lists(
        st.sampled_from(NEAR) | st.sampled_from(RANGES) | values(YAML_SNIPPETS),
        min_size=2,
        max_size=2,
    ),
    equals=st.sampled_from(["=", "=", "=", "=", "=", "=", "==", " = ", ""]),
)
def test_assignments(
    path: Path, file: Path, keys: list[str], given_values: list[Any], equals: str
) -> None:
    path.write_bytes(file.read_bytes())
    pairs = zip(keys, given_values, strict=False)
    load_and_check(path, [f"{key}{equals}{written(tree(value))}" for key, value in pairs])


numbers = st.sampled_from([1, 2, 3, 4, 8, 9, 24, 64, 96, 1000, 0.1, 0.3, 0.5, 0.9]) | st.floats(0)
ranges = st.one_of(
    st.tuples(numbers, numbers, st.sampled_from(["linear", "log"])).map(
        lambda drawn: {"low": min(drawn[:2]), "high": max(drawn[:2]), "scale": drawn[2]}
    ),
    st.lists(numbers, min_size=2, max_size=4, unique=True).map(lambda drawn: {"choices": drawn}),
    st.just({"choices": [False, True]}),
)


@inputs(120)
@given(file=st.sampled_from(SEARCH_FILES), data=st.data())
def test_ranges(path: Path, file: Path, data: st.DataObject) -> None:
    content = yaml.safe_load(file.read_bytes())
    names = [p for p in dotted(content) if p.startswith(("model.", "optimizer.", "oialr.", "ep"))]
    path.write_bytes(file.read_bytes())
    chosen = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=2))
    load_and_check(path, [f"space.{name}={json.dumps(data.draw(ranges))}" for name in chosen])


@pytest.mark.parametrize(
    "assignments",
    [
        ["space.model.embed_dim={low: 64, high: 512}"],
        ["space.model.embed_dim={choices: [36, 64]}", "space.model.num_heads={choices: [4, 8]}"],
    ],
    ids=["between the ends", "together"],
)
def test_a_space_with_invalid_values_inside_is_refused(assignments: list[str]) -> None:
    with pytest.raises(ConfigError, match="`num_heads` must divide") as caught:
        load_search(DIGITS, assignments)
    assert_clear(caught.value, DIGITS.name)


@inputs(120)
@given(file=st.sampled_from(FILES), data=st.data())
def test_a_wrong_type_is_told_with_its_key(path: Path, file: Path, data: st.DataObject) -> None:
    content = tree(yaml.safe_load(file.read_bytes()))
    pair = data.draw(st.sampled_from([pair for part in mappings(content) for pair in part]))
    dates = [] if isinstance(pair[1], str) else [3j]  # one is a text, where a text may stand
    pair[1] = data.draw(st.sampled_from([*dates, ["a", ["b"]], [{}], Pairs([["a", Pairs()]])]))
    if pair[1] == 3j:
        pair[1] = Raw("2024-01-01")
    path.write_text(written(content))
    load = load_search if file in SEARCH_FILES else load_training
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert_clear(caught.value, path.name)
    assert pair[0] in str(caught.value)


@pytest.mark.parametrize(
    "text", ["010", "-0", "+7", "1e3", "1.", ".5", "+.5E-3", "1e999", "true", "FALSE", "~", ""]
)
def test_plain_text_is_read_as_yaml_1_2_does(text: str) -> None:
    expected = {"true": True, "FALSE": False, "~": None, "": None}
    value = parse_yaml(f"a: {text}", "f")["a"]
    assert value == (expected[text] if text in expected else float(text))
    assert isinstance(value, int) == (text in ("010", "-0", "+7", "true", "FALSE"))


@inputs(120)
@given(text=st.text(max_size=12) | st.sampled_from([t for t in NEAR + KEYS if isinstance(t, str)]))
def test_text_survives_yaml(text: str) -> None:
    try:
        assert parse_yaml(dump_yaml({"a": text}), "f") == {"a": text}
    except ConfigError as error:
        assert yaml.SafeLoader.NON_PRINTABLE.search(text)
        assert_clear(error, "(f, line 1)")


# --- Messages and result files

UPDATE = RankUpdate(step=3, layer="a", inner_rank=2, full_inner_rank=4, stability=0.5)
SEEN = Observation(
    step=4,
    earlier_step=2,
    layer="a",
    stability=0.5,
    mixing_similarity=0.1,
    relative_mixing_similarity=0.2,
)
RESULTS = [
    Completed(
        metrics={"validation_loss": 0.3, "test_loss": 1.0},
        trainable_percent=10.0,
        compression_percent=20.0,
        device="cpu",
        duration_s=1.5,
        at=2.0,
        resources=Resources(cpu_energy_j=1.5, peak_gpu_memory_bytes=3),
    ),
    Failed(reason="r", at=1.0, cause="machine"),
]
MESSAGES = [
    Prepare(config={"epochs": 1, "optimizer": {"lr": 0.1}}, data_dir=None),
    Evaluate(config={"text": "line\nbreak"}, folder="/x", state_file="/y"),
    Stop(),
    Ready(),
    Started(at=1.0, total_steps=3, parameters=4, layers="all", warnings=["w"], resumed_epoch=1),
    Progressed(step=3),
    Epoch(epoch=1, step=2, metrics={"a": 0.1}, rank_updates=[UPDATE], observations=[SEEN]),
    EpochPart(rank_updates=[UPDATE], observations=[SEEN]),
    Stopped(epoch=3, reason="pruned"),
    *RESULTS,
]
adapter = cache(TypeAdapter)


def assert_decodes_or_is_refused(line: bytes | str) -> None:
    try:
        message = decode(line)
    except ProtocolError as error:
        assert_clear(error)
        return
    assert_declared_types(message)
    assert encode(decode(encode(message))) == encode(message)  # type: ignore[arg-type]


def assert_declared_types(message: object) -> None:
    """Pydantic agrees that each field has its type."""
    kinds = get_type_hints(type(message))
    for name, value in vars(message).items():
        adapter(kinds[name]).validate_python(value, strict=True)
        for part in value if isinstance(value, list) else ():
            if not isinstance(part, str):
                assert_declared_types(part)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_the_messages_to_spoil_are_right(message: Any) -> None:
    assert decode(encode(message)) == message
    assert_declared_types(message)


def contents(messages: Sequence[Any]) -> list[Any]:
    """What is in the lines of messages."""
    return [{"type": type(message).__name__.lower(), **asdict(message)} for message in messages]


@inputs(300)
@given(line=spoilt(contents(MESSAGES), JSON_SNIPPETS))
def test_spoilt_messages(line: str) -> None:
    assert_decodes_or_is_refused(line.encode("utf-8", "surrogatepass"))


@inputs(120)
@given(raw=damaged([encode(message) for message in MESSAGES]))
def test_damaged_messages(raw: bytes) -> None:
    assert_decodes_or_is_refused(raw)


@inputs(120)
@given(
    raw=damaged([encode(result) for result in RESULTS])
    | spoilt(contents(RESULTS), JSON_SNIPPETS).map(str.encode)
)
def test_result_files(path: Path, raw: bytes) -> None:
    file = path.with_name("result.json")
    file.write_bytes(raw)
    assert_decodes_or_is_refused(file.read_bytes())


@pytest.mark.parametrize(
    "line",
    [
        '{"type": "progressed", "step": true}',
        '{"type": "progressed", "step": 1.0}',
        '{"type": "progressed", "step": 9223372036854775808}',
        '{"type": "started", "at": 1, "total_steps": 1, "parameters": 1, "layers": ["all"]}',
        '{"type": "failed", "reason": "r", "at": 1.0, "cause": "weather"}',
        '{"type": "epoch", "epoch": 1, "step": 1, "metrics": {"a": "1"}}',
        '{"type": "epoch", "epoch": 1, "step": 1, "metrics": {}, "rank_updates": [{"step": 1}]}',
        '{"type": "prepare", "config": "text", "data_dir": null}',
        '{"type": "prepare", "config": {}, "data_dir": 3}',
        '{"type": ["ready"]}',
        "[" * 100_000,
    ],
)
def test_a_message_of_wrong_types_is_refused(line: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode(line)
    assert_clear(caught.value)


# --- Database URLs

SECRET = "s3cr3t"
PASSWORDS = [
    "%s",
    "%s%%40x",
    "%s:x",
    "%s/x",
    "%s?x",
    "%s#x",
    "x@%s",
    "%s@x",
    "%s\n",
    "%s %s",
    "%s%%00",
]


@st.composite
def urls(draw: st.DrawFn) -> str:
    """URLs with a password at its place, or where somebody may have put it by mistake."""

    def one(*texts: str) -> str:
        return draw(st.one_of(st.sampled_from(texts), st.sampled_from(texts), st.text(max_size=6)))

    password = draw(st.sampled_from(PASSWORDS)).replace("%s", SECRET).replace("%%", "%")
    scheme = one(
        *("postgresql://", "postgres://", "postgresql+psycopg://", "postgresql+asyncpg://"),
        *("postgresql:/", "postgresql:", "postgresql//", "postgresql:///", "//", "", "mysql://"),
        *("sqlite:///", "sqlite://", "sqlite+aiosqlite:///", "sqlite:", "POSTGRESQL://", "x" * 900),
        *("postgresql+://", "+://", "://", "é://", "postgresql://postgresql://"),
    )
    user = one("", "u", "u%0A", "u@v", "u/v")
    credentials = draw(
        st.sampled_from([f"{user}:{password}@", f"{user}:{password}@", f"{user}@", ""])
    )
    host = one(
        "", "h", "[::1]", "[::1", "h:5432", "h:99999999", "h:port", "h1:1,h2:2", "h,i", "h\n"
    )
    name = one(
        "", "/", "/db", "/db/more", "/~nobody-at-all/x", "/:memory:", "/%00", "/a b", "/x" * 200
    )
    query = one(
        *(
            "",
            "?",
            "?sslmode=require",
            f"?password={password}",
            f"?PASSWORD={password}",
            "?host=/tmp",
        ),
        *(
            f"?sslpassword={password}&user=v",
            "?connect_timeout=x",
            "?plugin=x",
            "?a=1&a=2",
            "?%0A=%0A",
        ),
        *("?host=a:1&host=b:2", "?host=a:x&port=1", "?port=y"),
    )
    return scheme + credentials + host + name + query


@inputs(300)
@given(text=urls())
def test_database_urls(text: str) -> None:
    try:
        url = parse_url(text)
    except StorageError as refusal:
        assert_clear(refusal)
        message = str(refusal)
        assert SECRET not in message
        return
    sa.create_engine(url)
    name = display_name(url)
    assert not any(character in name for character in "\n\r\0")
    if url.get_backend_name() == "postgresql":
        assert SECRET not in name
        assert parse_url(name).host == url.host
    else:
        assert Path(str(url.database)).is_absolute()
        assert f":{SECRET}" not in name or "@" not in name
        assert parse_url(name) == url


# --- The commands themselves

FILES_FOR_THE_COMMAND = {
    "empty": b"",
    "binary": bytes(range(256)),
    "nothing but a BOM": b"\xef\xbb\xbf",
    "UTF-16": "task: minivit_digits".encode("utf-16"),
    "truncated": DIGITS.read_bytes()[:700],
    "CRLF": DIGITS.read_bytes().replace(b"\n", b"\r\n"),
    "BOM": b"\xef\xbb\xbf" + DIGITS.read_bytes(),
    "large": b"# " + b"x" * 1_000_000,
    "nested": b"[" * 100_000,
    "aliases": LAUGHS.encode(),
    "merges": MERGES.encode(),
    "recursive": b"&x {task: minivit_digits, provenance: *x}",
    "tag": b"task: !!bool x",
    "key": b'"a\\nb\\e[31m": 1\ntask: minivit_digits',
    "integer": DIGITS.read_bytes() + b"\nprovenance: {a: 0x" + b"f" * 9000 + b"}",
    "number": DIGITS.read_bytes().replace(b"epochs: 12", b"epochs: " + b"9" * 5000),
    "space": b"task: minivit_digits\nspace: 5\nsearch: 5\n",
}
VALID = {"CRLF", "BOM", "integer"}


@pytest.mark.parametrize("name", FILES_FOR_THE_COMMAND)
def test_validate(command: Command, name: str) -> None:
    (command.folder / "fuzzed.yaml").write_bytes(FILES_FOR_THE_COMMAND[name])
    result = command("validate", "fuzzed.yaml", "--set", "seed=1", check=False)
    assert result.returncode == (0 if name in VALID else 78), result.stderr
    lines = result.stderr.splitlines()
    assert bool(lines) == (name not in VALID)
    assert all(line.startswith("error: ") and "fuzzed.yaml" in line for line in lines)


def test_a_file_whose_name_is_no_text(command: Command) -> None:
    name = "a\nb\udcff.yaml"
    (command.folder / name).write_bytes(DIGITS.read_bytes())
    assert len(command("validate", name).stdout.splitlines()) == 1
    (command.folder / name).write_bytes(b"a: 1")
    result = command("validate", name, check=False)
    assert result.returncode == 78
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "url",
    [
        "",
        "mysql://u:s3cr3t@h/db",
        "postgresql:/u:s3cr3t@h/db",
        "postgresql://u:s3cr3t@x@h/db",
        "postgresql://u:s3cr3t@localhost:1/db?plugin=x",
        "postgresql://u:s3cr3t@localhost:99999999/db",
        "postgresql://u@localhost:1/db?PASSWORD=s3cr3t",
        "postgresql://u\udcff:s3cr3t@localhost:1/db",
        "sqlite:///~nobody-at-all/search.db",
        "sqlite://search.db",
        "fuzzed.db",
    ],
)
def test_leaderboard(command: Command, url: str) -> None:
    (command.folder / "fuzzed.db").write_bytes(bytes(range(256)) * 20)
    result = command("leaderboard", "--db", url, check=False)
    assert result.returncode == 78, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert SECRET not in line


def test_leaderboard_without_a_url(command: Command) -> None:
    result = command("leaderboard", "--db", check=False)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


def test_the_database_of_a_folder_with_an_odd_name(command: Command) -> None:
    folder = command.folder / "50%25 off?"
    result = command("upgrade", "--search-dir", folder, check=False)
    assert (result.returncode, str(folder) in result.stderr) == (78, True)
