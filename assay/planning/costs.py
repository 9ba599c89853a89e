"""Cost of a run: money, electricity, carbon and water, each with bounds.

Low, value and high multiply low, value and high of each term, as in `governance/energy/footprint.py`: scenarios, no
confidence interval. Factors that the run sets (`[energy.factors]`) go before those of the cluster file.
"""

from __future__ import annotations

from assay.planning.cluster import Cluster
from governance.energy.band import UNKNOWN, Band
from governance.energy.factors import Factor, Factors


def costs(
    cluster: Cluster, factors: Factors, nodes: int, wall: Band, watts: float | None = None, spare_nodes: int = 0
) -> dict[str, Band]:
    """Device hours, money, energy, carbon and water of this many nodes.

    `wall` is in seconds. `watts` is the measured power of a node; None takes the cluster file's. Spare nodes cost money
    as the others do; what they draw while idle is not known, and not in the energy.
    """
    hours = wall.each(nodes / 3600, "*")
    devices = wall.each((nodes + spare_nodes) * cluster.ranks_per_node / 3600, "*")
    load = cluster.band("load_node_watts") if watts is None else watts
    electricity = hours.each(load, "*").each(1e-3, "*")
    building = electricity.each(_factor(factors, "pue", cluster), "*")
    grid = UNKNOWN if factors.grid is None else factors.grid.band
    water = electricity.each(_factor(factors, "wue", cluster), "*").each(
        building.each(_factor(factors, "grid_water", cluster), "*"), "+"
    )
    return {
        "device_hours": devices,
        "usd": devices.each(cluster.band("price_hour"), "*"),
        "kwh": electricity,
        "kwh_building": building,
        "kg_co2e": building.each(grid, "*").each(1e-3, "*"),
        "litres": water,
    }


def _factor(factors: Factors, name: str, cluster: Cluster) -> Band:
    """The run's own factor, or the cluster's in place of a default."""
    own: Factor | None = getattr(factors, name)
    return own.band if own is not None and name not in factors.defaults else cluster.band(name)
