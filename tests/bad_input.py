"""Bad values for every argument of the public functions, classes, methods and commands.

What is wrong must be said by a `ValueError` or a `TypeError` that names the argument, in fewer
than 2,000 characters, within a second; and by a command on one line, with exit code 2.

A package's `CASES` have a valid value for each argument. The bad ones follow from its kind: see
`bad_values`.
"""

import contextlib
import dataclasses
import importlib
import inspect
import re
import signal
import sys
import time
import typing

import pytest
from bad_values import LEFT_OUT, value_of
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import ce_keras

# Characters of a message, and seconds until it comes.
LONGEST, SECONDS = 2000, 1.0

# Seconds after which a call is cut off, also where other programs run: it is not going to refuse.
PATIENCE = 60.0


@dataclasses.dataclass
class Case:
    """A call and its arguments.

    Attributes:
        name: below `ce_keras`; of a method, with its class.
        arguments: by name.
        of: makes the object of a method; called anew each time.
        unnamed: arguments that are not given by name.
    """

    name: str
    arguments: dict
    of: object = None
    unnamed: tuple = ()

    def target(self):
        if self.of is not None:
            return getattr(self.of(), self.name.rpartition(".")[2])
        found = ce_keras
        for part in self.name.split("."):
            found = getattr(found, part)
        return found

    def call(self, call, **changed):
        """Call with the valid values, but for those that are changed."""
        given = {name: each.valid for name, each in self.arguments.items()} | changed
        given = {name: value for name, value in given.items() if value is not LEFT_OUT}
        unnamed = [given.pop(name) for name in self.unnamed if name in given]
        return call(*unnamed, **given)


def case(called, /, of=None, unnamed=(), **arguments):
    return Case(called, arguments, of, unnamed)


class CutOffError(BaseException):
    """A call that takes too long."""


@contextlib.contextmanager
def patience(seconds=PATIENCE):
    """Cut off what takes longer, where the system has such a clock."""

    def cut_off(*_):
        raise CutOffError

    before = signal.signal(signal.SIGALRM, cut_off)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def said(call):
    """Return what a call raises, and the seconds of the processor it takes."""
    begun = time.process_time()
    error = None
    try:
        with patience():
            call()
    except (Exception, CutOffError) as raised:
        error = raised
    return error, time.process_time() - begun


def names_it(message, names):
    return any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", message) for name in names)


def wrong_with(error, names):
    """Return what is wrong with a refusal; `None` if nothing is."""
    message, kind = str(error), type(error).__name__
    short = " ".join(message[:200].split())
    if not isinstance(error, ValueError | TypeError):
        return f"{kind}: {short}"
    if len(message) >= LONGEST:
        return f"a message of {len(message):,} characters: {kind}: {short[:100]}"
    return None if names_it(message, names) else f"{kind} does not name it: {short}"


def complaint(call, names):
    """Return what is wrong with how a call refuses a bad value; `None` if nothing is."""
    error, seconds = said(call)
    if isinstance(error, CutOffError):
        return f"not refused within {PATIENCE:g} s"
    if error is None:
        return f"accepted, after {seconds:.1f} s" if seconds > SECONDS else "accepted"
    if seconds >= SECONDS:  # Once more: other programs run here too.
        error, seconds = said(call)
    what = wrong_with(error, names)
    if what is None and seconds >= SECONDS:
        return f"refused, but only after {seconds:.1f} s"
    return what


def optional(target, argument):
    parameter = inspect.signature(target).parameters.get(argument)
    return parameter is not None and parameter.default is None


def bad_values(each, target, argument):
    """The fixed bad values of an argument; `None` is none where it is the default."""
    bad = each.arguments[argument].bad
    return {k: v for k, v in bad.items() if k != "None" or not optional(target, argument)}


RARELY = settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    phases=(Phase.generate,),  # The values are short as they are.
    database=None,
    suppress_health_check=list(HealthCheck),
)


class OwnFolder:
    """Nothing is trained, and files go to a folder of the tests' own."""

    @pytest.fixture(scope="class", autouse=True)
    def own_folder(self, tmp_path_factory):
        from ce_keras import demo
        from ce_keras.training import run as runs

        class Untrained:
            def __init__(self, *_, **__):
                pass

            def run(self):
                return {"design": "1x4d", "error": 50.0, "history": []}

        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path_factory.mktemp("bad_input"))
            patch.setattr(runs, "Trainer", Untrained)
            patch.setattr(demo, "compare", lambda *_, **__: [])
            yield

    @pytest.fixture(autouse=True)
    def without_pictures(self):
        yield
        if "matplotlib.pyplot" in sys.modules:
            sys.modules["matplotlib.pyplot"].close("all")


class BadInput(OwnFolder):
    """Tests of all `CASES`, and that no public name of `AREAS` is forgotten.

    Attributes:
        CASES: what is called.
        AREAS: modules below `ce_keras`; `""` is `ce_keras` itself.
        WITHOUT: names that are not tested, and why.
    """

    CASES = ()
    AREAS = ()
    WITHOUT: typing.ClassVar = {}

    def pytest_generate_tests(self, metafunc):
        names = metafunc.fixturenames
        if "argument" in names:
            pairs = [(each, argument) for each in self.CASES for argument in each.arguments]
            ids = [f"{each.name}-{argument}" for each, argument in pairs]
            metafunc.parametrize(("each", "argument"), pairs, ids=ids)
        elif "each" in names:
            metafunc.parametrize("each", self.CASES, ids=lambda each: each.name)

    def test_every_public_name_is_tested_or_left_out_for_a_reason(self):
        for area in self.AREAS:
            self.assert_tested(area)

    def assert_tested(self, area):
        module = getattr(ce_keras, area, None) if area else ce_keras
        module = module or importlib.import_module(f"ce_keras.{area}")
        names = getattr(module, "__all__", None) or [
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and getattr(value, "__module__", "") == module.__name__
        ]
        modules = {name for name in names if inspect.ismodule(getattr(module, name))}
        prefix = f"{area}." if area else ""
        covered = {each.name for each in self.CASES} | set(self.WITHOUT)
        assert not {f"{prefix}{name}" for name in set(names) - modules} - covered

    def test_the_valid_values_are_accepted_and_no_argument_is_forgotten(self, each):
        warm(each)
        same = [one for one in self.CASES if one.name == each.name]
        if each.name.endswith("__call__") or each is not same[0]:
            return  # Keras' signature; or the second case of one function.
        kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        parameters = inspect.signature(each.target()).parameters
        tested = {name for one in same for name in one.arguments}
        assert {n for n, one in parameters.items() if one.kind not in kinds} <= tested

    def test_bad_values_are_refused_by_a_short_message_that_names_the_argument(
        self, each, argument
    ):
        warm(each)
        bad = bad_values(each, each.target(), argument)
        found = {label: refusal(each, argument, value) for label, value in bad.items()}
        wrong = [f"{label}: {what}" for label, what in found.items() if what is not None]
        assert not wrong, "\n" + "\n".join(wrong)

    @RARELY
    @given(data=st.data())
    def test_values_that_are_drawn_are_refused_in_the_same_way(self, each, argument, data):
        if each.arguments[argument].drawn is None:
            return
        warm(each)
        value = data.draw(each.arguments[argument].drawn)
        assert refusal(each, argument, value) is None


_warm = set()


def warm(each):
    """Call once with valid values: imports and first uses are not timed."""
    if id(each) not in _warm:
        each.call(each.target(), **{n: value_of(a.valid) for n, a in each.arguments.items()})
        _warm.add(id(each))


def refusal(each, argument, bad):
    """Call with one bad value, and return what is wrong with how it is refused."""
    given = {name: value_of(one.valid) for name, one in each.arguments.items()}
    given[argument] = value_of(bad)
    target = each.target()
    names = (argument, *each.arguments[argument].names)
    return complaint(lambda: each.call(target, **given), names)
