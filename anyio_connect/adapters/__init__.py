"""Clients of other libraries over a ``Connector``, with its policy and its way of dialling.

Each module here is for one library, which has to be installed: ``pip install
'anyio-connect[httpx]'``, and so on. The modules use only the public names of this package.
"""
