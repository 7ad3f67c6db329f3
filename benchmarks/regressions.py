"""Proof that ``cpunorm compare --against`` sees a slowed kernel and leaves an unchanged one alone.

A run is saved; then, each in a process of its own, runs are compared with it: of an unchanged package, of one whose C kernels sleep a
little in every call, and of one whose C kernels have lost a thread. Printed is how many of the slowed rows were called slower, and how many
of the others. The last line, and the exit code, say whether every slowed run was seen and no unchanged row was called slower.

python benchmarks/regressions.py [--runs 10] [--shape "MobileNetV2 block 2"]       (needs the C part and two CPUs; six minutes)
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SECONDS = 3.0  # of measuring; `--quick` has 6
SLEEP = 1.0  # of what a call takes
KINDS = ("unchanged", "a sleep", "a thread less")
SLOWED = "c"


def slow(kind):
    """Change this process' C backend."""
    from cpunorm.dispatch import Runner

    made = Runner.__init__

    def init(self, plan, backend, dtype):
        made(self, plan, backend, dtype)
        if backend != SLOWED:
            return
        if kind == "a thread less":
            self._threads = max(self._threads - 1, 1)
            return
        driver = self.driver

        def sleepy(*arguments):
            start = time.perf_counter()
            driver(*arguments)
            end = time.perf_counter()
            while time.perf_counter() < end + SLEEP * (end - start):  # time.sleep takes 60 us more than it is told
                pass

        self.driver = sleepy

    Runner.__init__ = init


def child(kind, arguments):
    """``cpunorm compare`` in this process."""
    from cpunorm import cli
    from cpunorm.compare import measure

    measure.QUICK["seconds"] = SECONDS
    if kind != KINDS[0]:
        slow(kind)
    sys.exit(cli.main(["compare", *arguments]))


def run(kind, *arguments):
    done = subprocess.run([sys.executable, __file__, "--child", kind, *arguments], capture_output=True, text=True, check=False)
    if "written: " not in done.stderr:
        raise SystemExit(done.stderr)
    return [line for line in done.stderr.splitlines() if line.startswith("cpunorm compare: slower: ")], done.stdout


def main():
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--shape", default="MobileNetV2 block 2")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    good = True
    with tempfile.TemporaryDirectory() as folder:
        file, picture = (str(Path(folder) / name) for name in ("saved.json", "picture.png"))
        few = ["--quick", "--peers", "none", "--picture", picture]
        run(KINDS[0], *few, "--op", "batch_norm ", "--shape", options.shape, "--layouts", "NCHW", "--threads", "2", "--save", file)
        for number in range(options.runs):
            for kind in KINDS:
                lines, table = run(kind, *few, "--against", file)
                slowed = [line for line in lines if f", {SLOWED}, 2 threads" in line]
                others = len(lines) - len(slowed)
                wrong = bool(slowed) if kind == KINDS[0] else not slowed
                good = good and not wrong and not others
                print(
                    f"{number + 1:>3} {kind:<14} {len(slowed)} of 2 rows of {SLOWED} slower, {others} of 2 others {'<- WRONG' * wrong}",
                    flush=True,
                )
                if options.verbose or wrong or others:
                    print(table[table.index("Against") :])
    print("every slowed run was seen, no unchanged row was called slower" if good else "NOT as it should be")
    sys.exit(not good)


if __name__ == "__main__":
    main()
