"""Print the progress of a training: step, rate, time left and losses."""

import time
from pathlib import Path

from pipeline.core import metrics_log

EVERY_SECONDS, SILENT_SECONDS = 5.0, 60.0
ALONE = "Ctrl-C ends the training, and the same command continues from the last checkpoint"
REPLACED = "a Ray worker that does not answer is replaced after a minute, if one of several hangs, after five"


class Progress:
    """A listener that prints the newest logged step of a training.

    ``has_workers``: whether Ray workers train, which are replaced when they hang.
    """

    def __init__(self, name: str, num_steps: int, batch_size: int, has_workers: bool) -> None:
        self.name, self.num_steps, self.batch_size = name, num_steps, batch_size
        self.remedy = REPLACED if has_workers else ALONE
        self.printed_step, self.printed_at = -1, time.monotonic()
        self.heard_at, self.next_notice = self.printed_at, SILENT_SECONDS

    def __call__(self, folder: Path) -> None:
        """Print a line if there is a new step and the last line is at least five seconds old.

        Without a new step, print once a minute for how long there has been none.
        """
        if time.monotonic() - self.printed_at < EVERY_SECONDS and self.printed_step >= 0:
            return
        lines = metrics_log.read(folder / "metrics.jsonl")
        silence = time.monotonic() - self.heard_at
        if lines and lines[-1]["step"] > self.printed_step:
            self.printed_step, self.printed_at = lines[-1]["step"], time.monotonic()
            self.heard_at, self.next_notice = self.printed_at, SILENT_SECONDS
            print(self._line(lines), flush=True)
        elif silence >= self.next_notice:
            self.next_notice += SILENT_SECONDS
            print(f"{self.name}: no new step for {silence:.0f} s; {self.remedy}", flush=True)

    def _line(self, lines: list[dict]) -> str:
        step = lines[-1]["step"]
        latest: dict[str, float] = {}
        for line in lines[-50:]:
            latest |= line["metrics"]
        rate = latest.get("system/images_per_second", 0.0)
        minutes, seconds = divmod(int((self.num_steps - step) * self.batch_size / rate) if rate else 0, 60)
        names = [name for name in latest if name.endswith("loss") or name.startswith("validation/")]
        metrics = "  ".join(f"{name.removeprefix('train/')} {latest[name]:.4g}" for name in names[:5])
        done = f"{step:>{len(str(self.num_steps))}}/{self.num_steps}"
        return f"{self.name}  {done}  {rate:,.0f} images/s  {minutes}:{seconds:02d} left  {metrics}"
