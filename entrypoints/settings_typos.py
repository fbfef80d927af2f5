"""Names in the environment that are probably misspelt settings."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from difflib import get_close_matches

NEAR = 0.86
"""As difflib measures it: RABBITMQ_PASSWORD is nearer to RABBITMQ_PASS than this, and what a
broker's own container is told (RABBITMQ_DEFAULT_PASS, RABBITMQ_NODE_PORT) is not."""

OF_OTHERS = frozenset({"AWS_ENDPOINT_URL", "STATSD_HOST", "STATSD_PORT"})
"""Settings of boto3 and others that resemble ours by chance."""


def settings_typos(given: Mapping[str, str | None], settings: Collection[str]) -> dict[str, str]:
    """Which names are probably meant as settings, each with the setting.

    One whose setting is given beside it is somebody else's: what several programs read often
    says the same thing under several names. A name without a value says nothing.

    Args:
        given: names with their values, in whatever case, as settings are read.
        settings: names in capitals.
    """
    values = {name.upper(): value for name, value in given.items() if value}
    found = {}
    for name in sorted(values.keys() - set(settings) - OF_OTHERS):
        near = get_close_matches(name, settings, n=1, cutoff=NEAR)
        if near and near[0] not in values:
            found[name] = near[0]
    return found
