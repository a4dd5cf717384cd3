"""Clients of other libraries over a ``Connector``: its policy and its way of dialling are theirs.

Each module here is for one library, which it imports, and which has to be installed:
``pip install 'anyio-connect[httpx]'``, and so on. They use nothing of this package but what is
public.
"""
