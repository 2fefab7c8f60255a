"""The OpenAI routes over HTTP: a Starlette application under uvicorn, around generation threads.

It takes folders, and knows neither the tracker nor the configuration. It is no part of a registered model. A request costs the event
loop well under a millisecond; what is slow (loading, large bodies) runs in other threads, so that /health answers at all times.
"""
