"""One rank of a sleeping node, by a rival: `meters.py codecarbon|carbontracker SECONDS FOLDER`; prints JSON."""

import json
import re
import resource
import sys
import time
from pathlib import Path

name, seconds, folder = sys.argv[1], float(sys.argv[2]), Path(sys.argv[3])


def cpu_seconds() -> float:
    """CPU-seconds of this process and of the children that it waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


if name == "codecarbon":
    from codecarbon import OfflineEmissionsTracker

    tracker = OfflineEmissionsTracker(
        country_iso_code="SWE", save_to_file=False, allow_multiple_runs=True, measure_power_secs=1, log_level="error"
    )
    tracker.start()
    started = cpu_seconds()
    time.sleep(seconds)
    used = cpu_seconds() - started
    tracker.stop()
    joules = tracker.final_emissions_data.energy_consumed * 3_600_000
else:
    from carbontracker.tracker import CarbonTracker

    tracker = CarbonTracker(
        epochs=1, update_interval=1, log_dir=str(folder / str(time.time_ns())), verbose=0, ignore_errors=False,
        api_keys=None, epochs_before_pred=0, monitor_epochs=1,
    )  # fmt: skip
    tracker.epoch_start()
    started = cpu_seconds()
    time.sleep(seconds)
    used = cpu_seconds() - started
    tracker.epoch_end()
    tracker.stop()
    logs = "".join(path.read_text() for path in folder.rglob("*.log"))
    joules = float(re.findall(r"Energy:\s*([0-9.eE+-]+) kWh", logs)[-1]) * 3_600_000
sys.stdout.write(json.dumps({"joules": joules, "cpu_seconds": used, "samples": seconds}) + "\n")
