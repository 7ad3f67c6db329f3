"""The C backend with its kernels in another process (tests/apart.c): under a sanitizer, or for another processor. A plugin for pytest.

``APART="qemu-aarch64 -L ... program" pytest -p apart ...`` puts a stand-in for ``cpunorm._native`` in its place before cpunorm is imported.
Plans, programs and tests are those of every day; only `cpunorm_run` sends the program and all arrays of the call over, and takes back what
the kernels wrote. Python is neither instrumented nor emulated, so that this is as fast as the kernels.

Each array is sent to the byte: what a kernel reads or writes around one is found there. Scratch is sent full of NaN.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import shlex
import subprocess
import sys
import threading
import types
from pathlib import Path

import numpy as np

CSRC = Path(__file__).parents[1] / "csrc"
SET, KERNEL, SIZES, RUN = range(4)
LINE = 64
NONE = -1


def bounds(address, extents, size):
    """(first byte, one past the last) of elements of `size` bytes at all multiples below (count, stride)."""
    ends = [(count - 1) * stride for count, stride in extents]
    return address + sum(min(end, 0) for end in ends), address + sum(max(end, 0) for end in ends) + size


class Call:
    """Memory of one call as regions, which overlap nowhere, and the addresses that lie in them."""

    def __init__(self):
        self.spans = []  # (start, stop) as they are named
        self.addresses = []  # (where it stands, what it names)

    def add(self, start, stop):
        self.spans.append((start, stop))

    def regions(self, first):
        """Disjoint (start, stop), those at the addresses `first` before all others."""
        found = []
        for start, stop in sorted({span for span in self.spans if span[1] > span[0]}):
            if found and start < found[-1][1]:
                found[-1][1] = max(found[-1][1], stop)
            else:
                found.append([start, stop])
        return sorted(found, key=lambda span: first.index(span[0]) if span[0] in first else len(first))


class Library:
    """What `cpunorm._native.lib` has."""

    cpunorm_has_openmp = 1

    def __init__(self, ffi, command):
        self._ffi = ffi
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=-1)
        self._lock = threading.Lock()
        self._pictures = {}
        self.calls = 0
        from cpunorm import program

        self._program = program
        sizes = [struct.itemsize for struct in (program.STEP, program.PHASE, program.PROGRAM, program.PICTURE)]
        with self._lock:
            self._send(SIZES)
            found = self._numbers(len(sizes))
        assert found == sizes, (found, sizes)

    # ---------------------------------------------------------------- talk

    def _send(self, *parts):
        try:
            for part in parts:
                self._process.stdin.write(part if isinstance(part, bytes) else int(part).to_bytes(8, "little", signed=True))
        except BrokenPipeError:
            self._ended()

    def _take(self, size):
        self._process.stdin.flush()
        found = self._process.stdout.read(size)
        if len(found) != size:
            self._ended()
        return found

    def _numbers(self, count):
        return np.frombuffer(self._take(8 * count), "<i8").tolist()

    def _ended(self):
        """What a sanitizer says is on stderr. Nothing can go on: no test after this one would mean anything."""
        os._exit(self._process.wait() or 1)

    # ---------------------------------------------------------------- lib

    def cpunorm_processors(self):
        return 4

    def cpunorm_set_name(self, number):
        with self._lock:
            self._send(SET, number)
            (size,) = self._numbers(1)
            name = self._take(size)
            self._numbers(1)
        return self._ffi.new("char[]", name) if size else self._ffi.NULL

    def cpunorm_set_runs_here(self, number):
        with self._lock:
            self._send(SET, number)
            self._take(*self._numbers(1))
            return self._numbers(1)[0]

    def cpunorm_kernel(self, number, name, dtype):
        with self._lock:
            self._send(KERNEL, number, dtype, len(name), name)
            (address,) = self._numbers(1)
        if name in (b"planes", b"pixels", b"resize_rows"):
            self._pictures[address] = name
        return address

    def cpunorm_run_ready(self, *_):
        """C reads objects of its own process only: `cpunorm.ready` finds that here it does not, and every call goes the usual way."""
        return 0

    def cpunorm_run(self, address, threads, *objects):
        with self._lock:
            self.calls += 1
            self._run(address, threads, objects)

    def _run(self, address, threads, objects):
        call = Call()
        steps = self._add_program(call, address)
        arrays = [ctypes.cast(thing, ctypes.py_object).value if thing else None for thing in objects]
        arrays[-1].fill(np.nan)
        slots = np.array([NONE if x is None else x.__array_interface__["data"][0] for x in arrays], np.int64)
        table = np.where(slots == NONE, 0, slots)
        call.add(table.ctypes.data, table.ctypes.data + table.nbytes)
        for slot, (x, start) in enumerate(zip(arrays, slots.tolist(), strict=True)):
            if x is not None and x.size:
                call.add(*np.lib.array_utils.byte_bounds(x))
                call.addresses.append((table.ctypes.data + 8 * slot, start))
            elif x is not None:
                table[slot] = 0
        if steps["kernel"][0] in self._pictures:
            self._add_pictures(call, steps[0], arrays[0].view(self._program.PICTURE).ravel(), int(table[1]))
        regions = call.regions([address, table.ctypes.data])
        starts = np.array([start for start, _ in regions])
        order = np.argsort(starts)

        def place(at):
            number = int(order[np.searchsorted(starts[order], at, "right") - 1])
            return number, at - regions[number][0]

        self._send(RUN, threads, len(regions), len(call.addresses))
        before = [ctypes.string_at(start, stop - start) for start, stop in regions]
        for (start, stop), data in zip(regions, before, strict=True):
            self._send(start % LINE, stop - start, data)
        for at, of in call.addresses:
            self._send(*place(at), *place(of))
        (damaged,) = self._numbers(1)
        after = [self._take(len(data)) for data in before]
        assert damaged == -1, f"kernels wrote beside region {damaged}: {regions[damaged]}, slots {slots}"
        pointed = {place(at)[0] for at, _ in call.addresses}
        written = {place(start)[0] for x, start in zip(arrays[2:], slots[2:].tolist(), strict=True) if x is not None and x.size}
        for number, ((start, stop), old, new) in enumerate(zip(regions, before, after, strict=True)):
            if number in written:
                ctypes.memmove(start, new, stop - start)
            elif number not in pointed:
                assert new == old, f"kernels wrote to what they may only read: region {number}, slots {slots}"

    def _add_program(self, call, address):
        """Head, phases and steps, which point to one another. Returns the steps."""
        kinds = self._program
        head = np.frombuffer(ctypes.string_at(address, kinds.PROGRAM.itemsize), kinds.PROGRAM)[0]
        count = int(head["phase_count"])
        phases = np.frombuffer(ctypes.string_at(int(head["phases"]), count * kinds.PHASE.itemsize), kinds.PHASE)
        length = int((phases["first"] + phases["count"]).max())
        size = length * kinds.STEP.itemsize
        call.add(address, address + kinds.PROGRAM.itemsize)
        call.add(int(head["phases"]), int(head["phases"]) + phases.nbytes)
        call.add(int(head["steps"]), int(head["steps"]) + size)
        for name in ("phases", "steps"):
            call.addresses.append((address + kinds.PROGRAM.fields[name][1], int(head[name])))
        return np.frombuffer(ctypes.string_at(int(head["steps"]), size), kinds.STEP)

    def _add_pictures(self, call, step, table, base):
        """What is read of each picture, and the tables of weights of those that are resized. With a `base`, the array in slot second, which
        is a region of its own, pictures are so many bytes from there, and stay so.
        """
        kinds = self._program
        resized = self._pictures[int(step["kernel"])] == b"resize_rows"
        for row, entry in enumerate(table):
            where = table.ctypes.data + row * kinds.PICTURE.itemsize
            high, wide = int(step["total"] // step["last"]) if not resized else 0, int(step["last"])
            if resized:
                for name, count in (("down", int(step["middle"])), ("across", wide)):
                    words = 2 + int(entry[f"{name}_taps"])
                    start = int(entry[name])
                    call.add(start, start + 4 * words * count)
                    call.addresses.append((where + kinds.PICTURE.fields[name][1], start))
                    if name == "down":
                        read = np.frombuffer(ctypes.string_at(start, 4 * words * count), np.int32).reshape(count, words)
                        high = int((read[:, 0] + read[:, 1]).max())
                wide = int(entry["width"])
            extents = [(high, int(entry["row"])), (wide, int(entry["column"])), (int(step["channels"]), int(entry["channel"]))]
            start = base + int(entry["data"])
            call.add(*bounds(start, extents, int(step["item_size"])))
            if not base:
                call.addresses.append((where + kinds.PICTURE.fields["data"][1], start))


def install(command):
    """Put the stand-in in its place."""
    assert "cpunorm.native" not in sys.modules
    ffi = runpy.run_path(str(CSRC / "build.py"))["ffi"]
    module = types.ModuleType("cpunorm._native")
    module.__file__ = "apart"
    module.ffi, module.lib = ffi, Library(ffi, command)
    sys.modules["cpunorm._native"] = module
    return module.lib


LIBRARY = install(shlex.split(os.environ["APART"]))
if os.environ.get("APART_BLOCKS") == "small":  # of which there are several even in small arrays, for all threads there are
    from cpunorm import plan

    plan.SERIAL_BYTES, plan.FOLD_BLOCK = 64, 1


def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line(f"{LIBRARY.calls} calls ran apart: {os.environ['APART']}")


def pytest_sessionfinish(session):
    """What a sanitizer finds as the process ends counts too."""
    LIBRARY._process.stdin.close()
    if LIBRARY._process.wait() or not LIBRARY.calls:
        session.exitstatus = 1
