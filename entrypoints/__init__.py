"""The commands. Only here the environment is read and adapters are chosen."""
