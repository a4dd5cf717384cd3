"""Adapters: clients of other libraries that connect through a ``Connector``.

Each module is for one library, which has to be installed, for example by ``pip install
'anyio-connect[httpx]'``. The modules use only the public names of this package.
"""
