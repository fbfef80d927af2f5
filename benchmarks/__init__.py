"""Measurements of the trainer and of the service around it. Each module is a command."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SMALL_BASE = ROOT / "assets" / "small_base"
