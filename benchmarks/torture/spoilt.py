"""Spoilt files and odd settings, drawn by a random generator."""

import json
import random
from pathlib import Path
from typing import Any

# Values that no field expects.
VALUES: list[Any] = [
    *(None, "nope", "", "\x00", "auto", True, -1, 0, 1, 3, 2.5, 10**12, 1e308, float("nan")),
    *([], {}, [1], {"a": 1}),
]
FILES = ("config.json", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json")
TEMPLATES = (
    "{% for m in messages %}{{ m.content }}{% endfor %}",
    "{{ 'x' * 10**10 }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{{ messages[7].content }}",
    "{% for %}",
    "{{ raise_exception('no') }}",
)
NUMBERS = (
    "-1",
    "0",
    "1e308",
    "nan",
    "inf",
    "-inf",
    "1" + "0" * 12,
    "1" + "0" * 30,
    "0x10",
    "",
    "x",
)
NAMES = ("", "x", "../..", "nll=", "=", "nll:nll:nll", "\u00e9" * 300, "cpt,cpt,cpt", "a,b")
PLACES = ("", "/", "/dev/zero", "/dev/null", "/proc/self/mem", "~", "~nobody/x", "a:b:c:d", "x@")
FLAGS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        (
            *("rounds", "keep", "recovery-tokens", "calibration-tokens", "sequence-length"),
            *("width-multiple", "drop-layers", "global-batch", "micro-batch", "learning-rate"),
            *("seed", "keep-rounds", "eval-limit", "checkpoint-minutes", "recovery-growth"),
            *("recovered-within", "max-drop", "threshold", "anticipate"),
        ),
        NUMBERS,
    ),
    **dict.fromkeys(
        ("scorer", "recovery", "order", "device", "dtype", "attn", "eval-tasks", "gate", "steps"),
        NAMES,
    ),
    **dict.fromkeys(("model", "data", "protect", "teacher"), PLACES),
}


def spoil_bytes(file: Path, kind: str, generator: random.Random) -> None:
    """Flip a bit of the file (``flip``), or leave its first half (``cut``)."""
    content = bytearray(file.read_bytes())
    if kind == "cut":
        content = content[: len(content) // 2]
    else:
        content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    file.write_bytes(content)


def spoil_model(folder: Path, generator: random.Random) -> str:
    """Change one thing in a model's folder; return what."""
    draw = generator.random()
    if draw < 0.1:
        template = generator.choice(TEMPLATES)
        (folder / "chat_template.jinja").write_text(template)
        return f"template {template}"
    if draw < 0.4:
        file = generator.choice(sorted(folder.iterdir()))
        kind = generator.choice(["flip", "cut", "header"])
        if kind == "header":
            content = file.read_bytes()
            file.write_bytes(generator.randbytes(8) + content[8:])
        else:
            spoil_bytes(file, kind, generator)
        return f"{kind} {file.name}"
    file = folder / generator.choice([name for name in FILES if (folder / name).exists()])
    content = json.loads(file.read_text())
    what = spoil_value(content, generator)
    file.write_text(json.dumps(content))
    return f"{file.name}: {what}"


def spoil_value(content: Any, generator: random.Random) -> str:
    """Change or delete one value somewhere in a JSON document, in place; return what."""
    places: list[tuple[Any, Any]] = []
    waiting = [content]
    while waiting:
        each = waiting.pop()
        keys = each if isinstance(each, dict) else range(min(len(each), 50))
        places += [(each, key) for key in keys]
        waiting += [each[key] for key in keys if isinstance(each[key], dict | list)]
    owner, key = generator.choice(places)
    if generator.random() < 0.2:
        del owner[key]
        return f"without {key}"
    owner[key] = generator.choice(VALUES)
    return f"{key}={owner[key]!r}"


def spoil_rows(file: Path, generator: random.Random) -> str:
    """Change one thing in a file of JSON lines; return what."""
    kind = generator.choice(["flip", "cut", "value", "row", "text", "nothing"])
    lines = file.read_text().splitlines()
    place = generator.randrange(len(lines))
    if kind in ("flip", "cut"):
        spoil_bytes(file, kind, generator)
        return kind
    if kind == "value":
        row = json.loads(lines[place])
        kind = spoil_value(row, generator)
        lines[place] = json.dumps(row)
    elif kind == "row":
        lines[place] = generator.choice(["", "[]", "1", "null", "{", '{"a": 1}', "[" * 100_000])
    elif kind == "text":
        text = generator.choice(
            ["\ud83d", "\x00", "\u202e", "a" * 10**6, "\\boxed{" * 10**4, " " * 10**5]
        )
        lines[place] = json.dumps({"question": text, "answer": text})
    else:
        lines = []
    file.write_text("\n".join(lines) + "\n")
    return kind


def odd_flag(generator: random.Random) -> tuple[str, str]:
    """A flag, and a value for it."""
    name = generator.choice(sorted(FLAGS))
    return name, generator.choice(FLAGS[name])


def as_yaml(name: str, value: str, generator: random.Random) -> str:
    """A settings file with that value, and at times more that is odd."""
    line = f"{name.replace('-', '_')}: {json.dumps(value)}\n"
    more = [
        "",
        line,
        "[" * 1000,
        "&a [*a]\n",
        "? {a: 1}\n",
        "!!python/object:os.system {}\n",
        "\x07",
    ]
    return line + generator.choice([*more, *[""] * len(more)])
