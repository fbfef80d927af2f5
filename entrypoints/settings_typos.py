"""Names in the environment that are probably misspelt settings."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from difflib import get_close_matches

NEAR = 0.86
"""Smallest similarity ratio (difflib) of a typo: RABBITMQ_PASSWORD is above it for RABBITMQ_PASS;
the settings of the broker's container (RABBITMQ_DEFAULT_PASS, RABBITMQ_NODE_PORT) are below."""

OF_OTHERS = frozenset({"AWS_ENDPOINT_URL", "STATSD_HOST", "STATSD_PORT"})
"""Settings of boto3 and other programs that resemble ours by chance."""


def settings_typos(given: Mapping[str, str | None], settings: Collection[str]) -> dict[str, str]:
    """Find the names that are probably misspelt settings, each with the intended setting.

    Ignores a name if the setting itself is given too (the name then belongs to another program),
    and names without a value.

    Args:
        given: names with their values; case does not matter.
        settings: the settings' names in capitals.
    """
    values = {name.upper(): value for name, value in given.items() if value}
    found = {}
    for name in sorted(values.keys() - set(settings) - OF_OTHERS):
        near = get_close_matches(name, settings, n=1, cutoff=NEAR)
        if near and near[0] not in values:
            found[name] = near[0]
    return found
