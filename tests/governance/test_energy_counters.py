"""Counters against a known power: whatever they do on the way, the sum is right and the bounds hold."""

import contextlib
import math
import random

import pytest

from governance.energy.counters import MAX_WATTS, Counter, Glitch, Integral
from governance.energy.nvml import Nvml
from governance.energy.rapl import open_rapl
from tests.governance.test_energy_meters import FakeNvml, rapl_zone

ERROR = 0.005
SAMPLE = 5.0


class Device:
    """A device whose power follows a slow wave; energy in joules is known exactly at each time."""

    def __init__(self, generator: random.Random):
        self.mean, self.phase = generator.uniform(60, 700), generator.uniform(0, 6)
        self.now = 0.0

    def joules(self, at: float) -> float:
        return self.mean * (
            at + 0.2 * 60 / math.tau * (math.sin(at * math.tau / 60 + self.phase) - math.sin(self.phase))
        )

    def watts(self) -> float:
        return self.mean * (1 + 0.2 * math.cos(self.now * math.tau / 60 + self.phase))


@pytest.mark.parametrize("seed", range(20))
def test_rapl_with_wraps_a_reset_and_gaps(tmp_path, seed):
    generator = random.Random(seed)
    device = Device(generator)
    size = generator.choice([65_532_610_987, 262_143_328_850])
    start, reset_at = generator.randrange(size), 0.0
    zone = rapl_zone(tmp_path / "intel-rapl:0", "package-0", start, size)
    rapl, _ = open_rapl(tmp_path, lambda: device.now)
    resets = set(generator.sample(range(100, 700), 2)) if seed % 2 else set()
    gaps = {beat + more for beat in generator.sample(range(100, 650), 4) for more in range(generator.randint(1, 40))}
    gaps -= {beat + more for beat in resets for more in (-1, 0)}  # a reset in a gap may look like a wrap
    for beat in range(1, 721):
        device.now = beat * SAMPLE
        if beat in resets:
            start, reset_at = 0, device.now - generator.uniform(0, SAMPLE)
        if beat in gaps:
            (zone / "energy_uj").unlink(missing_ok=True)
        else:
            value = start + int(1e6 * (device.joules(device.now) - device.joules(reset_at)))
            (zone / "energy_uj").write_text(f"{value % size}\n")
        [part] = rapl.read()
        if beat not in resets:  # where the counter had only just begun, a reset is confirmed by the next reading
            assert (part.high is None) == (beat in gaps)
    assert part.millijoules == pytest.approx(1000 * device.joules(device.now), rel=ERROR)
    assert part.low <= 1000 * device.joules(device.now) <= part.high
    assert ("began again" in part.detail or "went on from another" in part.detail) == bool(resets)


@pytest.mark.parametrize("seed", range(20))
def test_nvml_with_a_reset_and_gaps(seed):
    generator = random.Random(seed)
    device, fake = Device(generator), FakeNvml()
    fake.energy, fake.power = {0: 123_456_789}, {1: int(1000 * device.watts())}
    gpus = Nvml(fake, [0, 1], lambda: device.now)
    start, reset_at, reset = fake.energy[0], 0.0, generator.randrange(200, 500)
    gaps = set(generator.sample(range(50, 700), 20)) - {reset}
    for beat in range(1, 721):
        device.now = beat * SAMPLE
        if beat == reset:
            start, reset_at = 0, device.now - generator.uniform(0, SAMPLE)
        fake.energy[0] = start + int(1000 * (device.joules(device.now) - device.joules(reset_at)))
        fake.power[1] = int(1000 * device.watts())
        fake.broken = beat in gaps
        counter, power = gpus.read()
    true = 1000 * device.joules(device.now)
    assert counter.millijoules == pytest.approx(true, rel=ERROR)
    assert power.millijoules == pytest.approx(true, rel=ERROR)
    assert counter.low <= true <= counter.high
    assert power.low <= true <= power.high
    assert "began again" in counter.detail


GLITCHES = {  # the reading before, the true one -> the wrong one read instead
    "a unit": lambda before, true, chance: before - 1,
    "slightly": lambda before, true, chance: before - chance.randrange(1, 10**7),
    "by a tenth": lambda before, true, chance: int(before * chance.uniform(0.9, 1)),
    "upwards": lambda before, true, chance: true + chance.randrange(10**11, 10**12),
}


@pytest.mark.parametrize("kind", [*GLITCHES, "for good"])
@pytest.mark.parametrize("size", [262_143_328_850, None])
@pytest.mark.parametrize("seed", range(3))
def test_a_glitch_is_no_reset_and_stays_within_the_bounds(kind, size, seed):
    """NVML's counter is at megajoules: a false reset would add them all."""
    chance = random.Random(f"{kind} {size} {seed}")
    device, shown = Device(chance), [0]
    at = {10 * chance.randrange(2, 70) for _ in range(8)}
    start = chance.randrange(size or 5 * 10**12)

    def true_value():
        value = start + int(1e6 * device.joules(device.now))
        return value % size if size else value

    shown[0] = true_value()
    count = Counter(lambda: shown[0], size, lambda: device.now)
    for beat in range(1, 721):
        before, device.now = true_value(), beat * SAMPLE
        near = min(before, true_value()) < 6 * 10**10  # a fall from there may be a reset
        if beat in at and not near and kind == "for good":
            start -= chance.randrange(2 * 10**10, 4 * 10**10)
        shown[0] = true_value()
        if beat in at and not near and kind in GLITCHES:
            shown[0] = GLITCHES[kind](before, true_value(), chance)
        with contextlib.suppress(Glitch):
            count.read()
    true = int(1e6 * device.joules(device.now))
    assert count.low <= true <= count.high <= true + len(at) * 2 * SAMPLE * MAX_WATTS * 1e6
    assert count.microjoules == pytest.approx(true, rel=ERROR)
    assert "no power explains" in count.detail


def test_a_small_counter_that_wraps_several_times_in_a_gap():
    now, broken, size = [0.0], [False], 65_536_000_000

    def read():
        if broken[0]:
            raise OSError(5, "Input/output error")
        return int(now[0] * 400e6) % size

    count = Counter(read, size, lambda: now[0])
    for _ in range(60):
        now[0] += 5
        count.read()
    broken[0] = True
    now[0] += 5
    with pytest.raises(OSError, match="Input/output"):
        count.read()
    broken[0] = False
    now[0] += 600  # 240 kJ: three wraps and more
    count.read()
    assert count.microjoules == pytest.approx(905 * 400e6, rel=ERROR)
    assert count.low < count.microjoules < count.high <= 1e6 * (300 * 400 + 605 * MAX_WATTS)
    assert "several times" in count.detail


def test_a_counter_that_begins_again_at_once_is_not_a_silent_zero():
    now, value = [0.0], [10**12]
    count = Counter(lambda: value[0], None, lambda: now[0])
    now[0], value[0] = 5.0, 0
    count.read()
    assert (count.microjoules, count.low, count.high) == (0, 0, 5 * MAX_WATTS * 10**6 + 1)
    assert count.detail == "began again from zero (1)"


def test_power_over_a_gap_is_only_likely():
    now, answers = [0.0], iter([100.0, 100.0, OSError("gone"), 300.0])

    def watts():
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    count = Integral(watts, lambda: now[0])
    now[0] = 10.0
    count.read()
    assert count.low == count.high == count.microjoules == 1_000_000_000
    now[0] = 20.0
    with pytest.raises(OSError, match="gone"):
        count.read()
    now[0] = 30.0
    count.read()
    assert count.microjoules == 5_000_000_000
    assert (count.low, count.high) == (1_000_000_000, 41_000_000_000)
