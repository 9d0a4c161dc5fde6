"""The runtime above the backends: models by name, sessions, their files, the commands.

`formerly.py` keeps the module names of version 0.1 importable.
"""

from . import formerly

formerly.install()
