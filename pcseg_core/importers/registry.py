# SPDX-License-Identifier: Apache-2.0
"""The families of published 3D networks, by the names of `pcseg import --as`."""

from __future__ import annotations

from pcseg_core.errors import InputError
from pcseg_core.importers import openscene, ptv3, scalr, slidr, sonata, spvnas, superflow
from pcseg_core.importers.family import Family
from pcseg_core.importers.published import Keys, Published

FAMILIES: dict[str, Family] = {
    "slidr": slidr.FAMILY,
    "superflow": superflow.FAMILY,
    "openscene": openscene.FAMILY,
    "spvnas": spvnas.FAMILY,
    "scalr": scalr.SCALR,
    "scalr-plus": scalr.SCALR_PLUS,
    "waffleiron": scalr.WAFFLEIRON,
    "ptv3": ptv3.FAMILY,
    "sonata": sonata.FAMILY,
    "sonata-indoor": sonata.INDOOR,
}


def family_named(name: str) -> Family:
    """The family of a name.

    Raises:
        InputError: no such family.
    """
    if name not in FAMILIES:
        raise InputError(f"--as {name}: expected one of {', '.join(FAMILIES)}")
    return FAMILIES[name]


def network_of(published: Published, family: Family, prefix: str | None = None) -> Keys:
    """The network of a family in a file; raises as `Published.network`."""
    others = [f.name for f in FAMILIES.values() if published.prefixes(f.probes)]
    return published.network(family.probes, family.name, prefix, " or ".join(others))
