"""Bars are shown where somebody watches."""

import io

from ce_keras.progress import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_has_a_bar(monkeypatch):
    monkeypatch.setattr("sys.stderr", Terminal())
    import sys

    assert list(progress(range(3), desc="drawing")) == [0, 1, 2]
    assert "drawing: 100%" in sys.stderr.getvalue()


def test_a_file_has_none(monkeypatch):
    monkeypatch.setattr("sys.stderr", io.StringIO())
    import sys

    assert list(progress(range(3), desc="drawing")) == [0, 1, 2]
    assert sys.stderr.getvalue() == ""
