"""Load the weights of the epoch that becomes the style."""

from __future__ import annotations

import logging
from collections.abc import Callable

from application.ports import BlobMissing, BlobTooLarge, CheckpointRejected, TrainingSession
from domain.delivery import NOT_LEARNED, epochs_to_deliver
from domain.failure import TrainingFailed
from domain.loss_curve import EpochRecord
from domain.parameters import Delivery

log = logging.getLogger(__name__)


def choose_weights(
    session: TrainingSession, deliver: Delivery, checkpoint: Callable[[int, int], bytes]
) -> EpochRecord:
    """Load the weights to deliver into a finished session, and return their epoch.

    Args:
        checkpoint: reads the checkpoint of an epoch and its last step. Raises ``BlobMissing`` if
            there is none; the next epoch in the order of preference is tried then.

    Raises:
        TrainingFailed: STYLE_NOT_LEARNED, if no epoch is left.
    """
    last = session.history[-1]
    for record in epochs_to_deliver(session.history, session.before, deliver):
        if record == last:
            return last
        try:
            step = record.epoch * session.total_steps // last.epoch
            session.restore(checkpoint(record.epoch, step))
        except (BlobMissing, BlobTooLarge, CheckpointRejected) as error:
            log.warning("the weights of epoch %d cannot be delivered: %s", record.epoch, error)
        else:
            return record
    raise TrainingFailed(NOT_LEARNED)
