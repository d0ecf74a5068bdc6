"""Processes of their own that need not import TensorFlow, which takes six seconds of a core.

They are forks of one process that has imported it and done nothing else: no device is
initialised, and nothing of this package is loaded. What a real interpreter does before that,
`subprocess` tests: the lines at its start, another backend of Keras, other compute libraries.
"""

import atexit
import gc
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tensorflow"])


class Process:
    """A process with the methods of `subprocess.Popen` that the tests call.

    Args:
        words: what would follow `python`: `-m MODULE`, `-c CODE` or a script, and its arguments.
        env: all of its environment; by default that of the tests.
        cwd: the folder in which it begins.
    """

    def __init__(self, words, env=None, cwd=None):
        self._folder = Path(tempfile.mkdtemp())
        self._written = None
        paths = [str(self._folder / name) for name in ("stdout", "stderr")]
        words = [str(word) for word in words]
        arguments = (words, dict(env or os.environ), str(cwd or Path.cwd()), paths)
        self._process = _CONTEXT.Process(target=_begin, args=arguments, daemon=True)
        self._process.start()

    @property
    def returncode(self):
        """The exit code; `None` while the process runs."""
        return self._process.exitcode

    def poll(self):
        """Return the exit code; `None` while the process runs."""
        return self.returncode

    def send_signal(self, which):
        """Send a signal, unless the process has ended."""
        if self.returncode is None:
            os.kill(self._process.pid, which)

    def kill(self):
        """End the process at once."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout=None):
        """Wait for the end, and return what was written to standard output and standard error."""
        self._process.join(timeout)
        late = self.returncode is None
        if late:
            self.kill()
            self._process.join()
        if self._written is None:
            files = [self._folder / name for name in ("stdout", "stderr")]
            self._written = tuple(file.read_text() if file.exists() else "" for file in files)
            shutil.rmtree(self._folder)
        if late:
            raise TimeoutError(f"still running after {timeout} s: {self._written[1]}")
        return self._written


def run(words, env=None, cwd=None, check=True, timeout=300):
    """Run a process to its end, as `subprocess.run` does with texts that are captured."""
    process = Process(words, env, cwd)
    output, errors = process.communicate(timeout)
    if check:
        assert process.returncode == 0, errors
    return subprocess.CompletedProcess(words, process.returncode, output, errors)


def _begin(words, environment, folder, paths):
    """Do in the fork what an interpreter does with its command line."""
    gc.freeze()  # What the fork begins with stays.
    # A shell's background jobs, and with them these tests, may have been told to ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for descriptor, path in enumerate(paths, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    first, *rest = words
    try:
        if first == "-m":
            sys.argv = rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        elif first == "-c":
            sys.argv = ["-c", *rest[1:]]
            exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = words
            sys.path.insert(0, str(Path(first).parent))
            runpy.run_path(first, run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # A fork of `multiprocessing` ends without them.
