"""Whole fleets in one thread and in virtual time: hundreds of disturbed hours a minute.

The workers are real: loop, use case, lease, journal, notify_outcome. The world around them is in
memory, and every call on it takes time, during which anything may happen. All that is random
comes from one seed, so a run that goes wrong can be looked at again.
"""
