"""A TCP socket for Python with the interface of the Workers ``connect()`` API, on AnyIO."""
