"""From what size on a result had better go past the caches: copies through them and past them, of arrays that grow.

What is read and written is twice the array. A shared L3 holds less than all of that long before it is full: the threshold of
`cpunorm.plan.Data.streams` is three quarters of it.

python benchmarks/streaming.py [--threads 1,2]
"""

import argparse
import statistics
import time

import numpy as np

from cpunorm import machine, native

TURN = 0.02  # seconds
ROUNDS = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", default="1,2")
    options = parser.parse_args()
    l3 = machine.caches().l3
    print(f"L3 {l3 >> 20} MB; us, the least and the median of {ROUNDS} turns")
    print(f"{'threads':>7} {'array MB':>9} {'moved of L3':>12} {'through caches':>17} {'past them':>17} {'ratio':>6}")
    for threads in map(int, options.threads.split(",")):
        for eighths in (1, 2, 3, 4, 5, 6, 7, 8, 10):
            x = np.ones(l3 // 16 * eighths // 4, dtype=np.float32)
            y = np.zeros_like(x)
            turns: dict[bool, list[float]] = {False: [], True: []}
            for _ in range(ROUNDS):
                for stream, times in turns.items():
                    native.copy_limit(y, x, threads, stream=stream)
                    fastest, begin = float("inf"), time.perf_counter()
                    now = begin
                    while now - begin < TURN:
                        start = now
                        native.copy_limit(y, x, threads, stream=stream)
                        now = time.perf_counter()
                        fastest = min(fastest, now - start)
                    times.append(fastest * 1e6)
            columns = [f"{min(times):8.0f} {statistics.median(times):8.0f}" for times in turns.values()]
            ratio = statistics.median(turns[False]) / statistics.median(turns[True])
            print(f"{threads:7} {x.nbytes / 2**20:9.1f} {eighths / 8:11.0%} {columns[0]:>18} {columns[1]:>17} {ratio:6.2f}", flush=True)


if __name__ == "__main__":
    main()
