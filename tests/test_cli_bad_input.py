"""Bad values for every option of every command: one line that names it, and exit code 2."""

import contextlib
import dataclasses
import functools
import io
import math
import re
import time

import pytest
from bad_input import LONGEST, RARELY, SECONDS, CutOffError, OwnFolder, names_it, patience
from bad_values import HUGE, JUNK, LONG, made_file, texts
from hypothesis import assume, given
from valid_values import finished_run, fresh_path, saved_classifier, saved_model

from ce_keras.cli import main

WHOLE = ["0", "-1", "1.5", "nan", "inf", "three", "", "[", "9" * 30, "9" * 5000, LONG, "1,2", "1e3"]


WIDTHS = [*(value for value in WHOLE if value != "1,2"), "1-100000000000000"]


SEED = [value for value in WHOLE if value != "0"]


REAL = ["-1", "nan", "inf", "-inf", "x", "", "1e400", "9" * 400, LONG, "1,5", "[1]"]


CHOICE = ["", "unknown", "3", LONG, "[", "Primal"]


TO_READ = ["nowhere/missing", "JUNK", "EMPTY", "FOLDER", "", LONG, "JUNK/inside"]


TO_WRITE = ["JUNK/inside", LONG]


@dataclasses.dataclass
class Command:
    """A command that works, and bad values of its options; positional ones have no dashes."""

    words: list
    bad: dict
    names: dict = dataclasses.field(default_factory=dict)


def places(words):
    """Put real paths in place of words in capitals."""
    real = {
        "JUNK": lambda: made_file("junk", JUNK),
        "EMPTY": lambda: made_file("empty.toml", b""),
        "FOLDER": lambda: made_file("folder/inside", b"").parent,
        "MODEL": saved_model,
        "CLASSIFIER": saved_classifier,
        "RUN": finished_run,
        "FRESH": fresh_path,
        "BRACKETS": lambda: made_file("brackets.toml", b"a = " + b"[" * 5000),
        "SECTIONS": lambda: made_file("sections.toml", b"[" * 5000),
    }
    return [
        re.sub(r"\b(" + "|".join(real) + r")\b", lambda match: str(real[match[0]]()), word)
        if len(word) < 200
        else word
        for word in words
    ]


# What the size of a design may be.
SIZED = {
    "--target": [*REAL, "0", "1e-9"],
    "--target-params": WHOLE,
    "--batch": WHOLE,
    "--phase": CHOICE,
    "--remeasure": ["false"],
}

COMMANDS = [
    Command(
        ["search", "resnext11"],
        {
            "baseline": ["", "unknown", "resnext11-2x3d", "resnext11-1x0d", LONG, "3", "fc"],
            "--mode": CHOICE,
            "--alpha": [*REAL, "0"],
            "--correlation": [*REAL, "1.5", "0.5"],
            "--budget": [*CHOICE, "params,", "params,time"],
            **SIZED,
            "--input-shape": ["64", "x", "0x0x0", "64x64x3x3", LONG],
            "--dtype": CHOICE,
            "--family": CHOICE,
            "--frontier": [*TO_WRITE, "curve.xyz", "FOLDER"],
            "--tolerance": REAL,
            "--multiple-of": [*WHOLE, "65"],
            "--widths": [
                *WIDTHS,
                "0-3",
                "3-1",
                "65",
                "4x4x4",
                "-",
                "4-",
                ",",
                "ax3",
            ],
            "--inputs": WHOLE,
            "--outputs": WHOLE,
            "--plot": [*TO_WRITE, "curve.xyz", "FOLDER"],
            "--hard-budget": ["false"],
            "--json": ["false"],
        },
        {"baseline": ("fc",)},
    ),
    Command(
        ["search", "fc", "--inputs=3", "--widths=4x2"],
        {
            "--inputs": WHOLE,
            "--outputs": WHOLE,
            "--widths": [*WIDTHS, "4x100000000000000", "4x0", "4x-1"],
        },
    ),
    Command(
        ["fit-alpha", "fc", "--inputs=3", "--widths=4x2", "--draws=4"],
        {
            "module": CHOICE,
            "--inputs": WHOLE,
            "--widths": [*WIDTHS, "4x100000000000000", "4x0"],
            "--draws": [*WHOLE, "1"],
            "--method": CHOICE,
            "--parameterization": CHOICE,
            "--seed": SEED,
            "--plot": [*TO_WRITE, "curve.xyz", "FOLDER"],
        },
    ),
    Command(
        ["fit-alpha", "bottleneck", "--inputs=8", "--draws=4"],
        {
            "--inputs": WHOLE,
            "--checkpoint": [*TO_WRITE, "JUNK", "EMPTY", "FOLDER", "BRACKETS"],
            "--widths": ["4"],
        },
    ),
    Command(["list"], {"--built": ["x"], "--json": ["x"]}),
    Command(["info", "resnext11_1x2d"], {"name": [*CHOICE, "resnext11_0x0d", "resnext11_"]}),
    Command(
        ["build", "resnext11", "--cardinality=1", "--width=2", "--classes=3"],
        {
            "name": [*CHOICE, "resnext11_0x0d"],
            "--mode": [*CHOICE, "dual"],
            "--cardinality": WHOLE,
            "--width": WHOLE,
            "--classes": WHOLE,
            "--seed": SEED,
            "--save": ["model.h5", "JUNK/inside.keras", LONG, f"{LONG}.keras"],
        },
    ),
    Command(
        ["collegialize", "MODEL", "--save=FRESH.keras", "--design=2x4d"],
        {
            "model": [*TO_READ, "BRACKETS"],
            "--mode": CHOICE,
            "--alpha": [*REAL, "0"],
            "--budget": CHOICE,
            **SIZED,
            "--tolerance": REAL,
            "--multiple-of": WHOLE,
            "--design": [*CHOICE, "0x0d", "9x900d", f"{'9' * 30}x2d"],
            "--only": ["unknown", LONG],
            "--skip": ["unknown", LONG],
            "--per": CHOICE,
            "--seed": SEED,
            "--init": CHOICE,
            "--measure": WHOLE,
            "--save": ["model.h5", "JUNK/inside.keras", LONG, f"{LONG}.keras"],
        },
    ),
    Command(
        [
            *("compress", "CLASSIFIER", "--data=embedded", "--save=FRESH.keras"),
            *("--design=2x4d", "--epochs=0", "--images=10", "--batch-size=1000"),
        ],
        {
            "model": [*TO_READ, "BRACKETS", "MODEL"],
            "--data": ["", "unknown", "JUNK", "FOLDER", LONG],
            "--save": ["model.h5", "JUNK/inside.keras", LONG, f"{LONG}.keras"],
            "--mode": CHOICE,
            "--target": [*REAL, "0"],
            "--design": [*CHOICE, "0x0d", "9x900d", f"{'9' * 30}x2d"],
            "--epochs": SEED,
            "--images": [*WHOLE, "5", "5001"],
            "--batch-size": WHOLE,
            "--learning-rate": [*REAL, "0"],
            "--normalize": CHOICE,
            "--augment": CHOICE,
            "--seed": SEED,
        },
    ),
    Command(
        [
            *("train", "fashion_mnist", "--out=FRESH", "--set=model.name=fully_connected"),
            *("--set=model.base=4", "--set=model.depth=2", "--mode=baseline"),
            *("--set=data.limit=20", "--set=data.test_limit=20"),
        ],
        {
            "recipe": [*TO_READ, "BRACKETS", "SECTIONS"],
            "--mode": CHOICE,
            "--set": [
                *(
                    "optimizer.learning_rate=x",
                    "optimizer.learning_rate=nan",
                    "optimizer.learning_rate=-1",
                    "optimizer.learning_rate",
                ),
                *("unknown=3", "optimizer.unknown=3", "=3", "", "optimizer=3", f"{LONG}=3"),
                *(
                    f"optimizer.learning_rate={LONG}",
                    f"optimizer.learning_rate={'[' * 5000}",
                    "a.b.c.d=1",
                ),
                *("data.source=nowhere", "data.name=unknown", f"data.source={LONG}"),
                *(f"schedule.batch_size={HUGE}", f"model.base={HUGE}", f"data.pad={HUGE}"),
            ],
            "--out": [*TO_WRITE, "JUNK"],
            "--seed": SEED,
            "--runs": WHOLE,
            "--save-every": WHOLE,
            "--devices": ["unknown:0", LONG, "gpu:99", ""],
        },
        {
            "--set": (
                "optimizer",
                "data.source",
                "data.name",
                "schedule.batch_size",
                "model.base",
                "data.pad",
                "unknown",
                "a.b",
                "a",
            )
        },
    ),
    Command(["evaluate", "RUN"], {"run_folder": TO_READ}, {"run_folder": ("run",)}),
    Command(
        ["export", "RUN", "--to=FRESH.keras"],
        {
            "run_folder": TO_READ,
            "--format": CHOICE,
            "--to": ["model.xyz", "JUNK", "JUNK/inside.keras", LONG, f"{LONG}.keras"],
        },
        {"run_folder": ("run",)},
    ),
    Command(
        ["reproduce", "fig2", "--out=FRESH", "--set=draws=2", "--set=width=4"],
        {
            "name": CHOICE,
            "--scale": CHOICE,
            "--set": [
                *("draws=x", "draws=nan", "draws=-1", "draws=0", f"draws={HUGE}", "draws=true"),
                *("draws", "", "=3", "unknown=3", f"draws={LONG}", f"{LONG}=3", "paths=3"),
                *("paths=[0]", "paths=x", "depth=0", "depth=1.5", "width=0", f"draws={'[' * 5000}"),
            ],
            "--out": [*TO_WRITE, "JUNK"],
            "--seed": SEED,
        },
        {"--set": ("draws", "paths", "depth", "width", "unknown", "settings")},
    ),
    Command(
        ["demo", "--out=FRESH", "--images=20", "--epochs=1"],
        {
            "--out": [*TO_WRITE, "JUNK"],
            "--epochs": WHOLE,
            "--images": [*WHOLE, "5", "10001"],
            "--batch-size": WHOLE,
            "--source": ["", "unknown", "JUNK", "FOLDER", LONG],
            "--seed": SEED,
        },
    ),
]


def outcome(words):
    """Exit code, standard error and seconds of a command, run in this process."""
    errors, begun = io.StringIO(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        try:
            with patience():
                code = main(words)
        except SystemExit as stop:
            code = stop.code
        except (Exception, CutOffError) as error:
            code = f"{type(error).__name__}: {str(error)[:200]}"
    return code, errors.getvalue(), time.process_time() - begun


def with_value(command, option, value):
    """The command's words with one option or argument of another value."""
    if option.startswith("--"):
        words = [word for word in command.words if not word.startswith(f"{option}=")]
        words = command.words if option == "--set" else words
        return places([*words, f"{option}={value}"])
    return places([command.words[0], *command.words[2:], "--", value])


def wrong_with_a_line(errors, names):
    """Return what is wrong with what a command wrote; `None` if nothing is."""
    lines = errors.splitlines()
    last = lines[-1] if lines else ""
    # Above its own message argparse shows the usage.
    if not last.startswith("ce-keras") or (len(lines) > 1 and not errors.startswith("usage:")):
        return f"{len(lines)} lines: {errors[:200]!r}"
    if len(last) >= LONGEST:
        return f"a line of {len(last):,} characters: {last[:100]}"
    told = last.partition(":")[2]
    return None if names_it(told, names) else f"does not name it: {last[:200]}"


def command_complaint(command, option, value):
    """Return what is wrong with how a command refuses a value; `None` if nothing is."""
    words = with_value(command, option, value)
    code, errors, seconds = outcome(words)
    if code != 2:
        return f"exit code {code}" + (f": {errors[-200:]}" if errors else "")
    if seconds >= SECONDS:
        seconds = outcome(words)[2]
    bare = option.removeprefix("--")
    names = {option, bare, bare.replace("-", "_"), *command.names.get(option, ())}
    what = wrong_with_a_line(errors, names | {name.upper() for name in names})
    if what is None and seconds >= SECONDS:
        return f"refused, but only after {seconds:.1f} s"
    return what


OPTIONS = [
    pytest.param(index, option, id=f"{' '.join(command.words[:2])}-{option}")
    for index, command in enumerate(COMMANDS)
    for option in command.bad
]


@functools.cache
def warm_command(index):
    """Run a command once as it should be: imports and first uses are not timed."""
    return outcome(places(COMMANDS[index].words))


def is_number(text):
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


class TestBadInput(OwnFolder):
    @pytest.mark.parametrize(
        "index", range(len(COMMANDS)), ids=[" ".join(c.words[:2]) for c in COMMANDS]
    )
    def test_the_commands_that_bad_values_are_put_into_work(self, index):
        code, errors, _ = warm_command(index)
        assert code == 0, errors

    def test_every_option_of_every_command_is_tested(self):
        from ce_keras import cli

        (commands,) = [
            action for action in cli._parser()._actions if isinstance(action.choices, dict)
        ]
        tested = {(each.words[0], option) for each in COMMANDS for option in each.bad}
        for name, parser in commands.choices.items():
            for action in parser._actions:
                takes_a_value = action.nargs != 0
                called = next(iter(action.option_strings), action.dest)
                if takes_a_value and called not in ("-h", "--help"):
                    assert (name, called) in tested

    @pytest.mark.parametrize(("index", "option"), OPTIONS)
    def test_a_command_refuses_bad_values_on_one_line_that_names_the_option(self, index, option):
        warm_command(index)
        wrong = []
        for value in COMMANDS[index].bad[option]:
            what = command_complaint(COMMANDS[index], option, value)
            if what is not None:
                shown = value if len(value) < 40 else f"{value[:20]}... ({len(value):,} characters)"
                wrong.append(f"{shown!r}: {what}")
        assert not wrong, "\n" + "\n".join(wrong)

    @pytest.mark.parametrize(
        ("index", "option"),
        [
            each
            for each in OPTIONS
            if COMMANDS[each.values[0]].bad[each.values[1]][:3]
            in (WHOLE[:3], SEED[:3], REAL[:3], CHOICE[:3])
        ],
    )
    @RARELY
    @given(value=texts)
    def test_a_command_refuses_texts_that_are_drawn_in_the_same_way(self, index, option, value):
        assume("\0" not in value)
        assume(not is_number(value))
        assume(not re.fullmatch(r"[\d\s_,x-]*", value) or option != "--widths")
        assume(value not in ("fc", "dual", "flops", "fit", "auto", "ntk", "stage", "split", "full"))
        warm_command(index)
        assert command_complaint(COMMANDS[index], option, value) is None

    @pytest.mark.parametrize(
        "words",
        [
            [],
            ["unknown"],
            [LONG],
            ["search"],
            ["search", "resnext11", "--unknown"],
            ["search", "resnext11", f"--{LONG}"],
            ["search", "resnext11", "resnext29"],
            ["train"],
            ["reproduce"],
        ],
        ids=lambda words: " ".join(words)[:30] or "nothing",
    )
    def test_words_that_are_no_command_are_refused_on_one_line(self, words):
        code, errors, seconds = outcome(words)
        last = errors.splitlines()[-1]
        assert code == 2
        assert last.startswith("ce-keras")
        assert len(last) < LONGEST
        assert "Traceback" not in errors
        assert seconds < SECONDS
