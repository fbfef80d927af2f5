"""Simulate whole fleets in one thread and in virtual time: hundreds of disturbed hours a minute.

The workers are real: loop, use case, lease, journal, notify_outcome. The world around them is in
memory. Every call to it takes virtual time, during which anything may happen. All randomness
comes from one seed, so a failed run can be repeated.
"""
