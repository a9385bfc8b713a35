"""Which packages the wheel holds; everything else about the package is in setup.cfg.

``site/`` and ``jobtemplates/`` lie beside ``dlhpc/`` in a checkout, where staff find them, and inside it in a wheel
(``dlhpc.resources`` knows both). An editable install needs no such mapping and must not have one: setuptools would
then put an import hook into every start of Python instead of a plain path.
"""

import sys

from setuptools import find_packages, setup

code = find_packages(include=["dlhpc", "dlhpc.*"])
if "editable_wheel" in sys.argv:
    setup(packages=code, package_dir={"": "."})
else:
    setup(
        packages=[*code, "dlhpc.jobtemplates", "dlhpc.site"],
        package_dir={"dlhpc.jobtemplates": "jobtemplates", "dlhpc.site": "site"},
        package_data={
            "dlhpc": ["py.typed"],
            "dlhpc.jobtemplates": ["**/*.j2", "**/*.sh"],
            "dlhpc.site": ["**/*.yaml", "**/*.sh", "**/*.j2"],
        },
    )
