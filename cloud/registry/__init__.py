"""The registry: which versions of which models there are, what they are called, who may ask, and who did what.

location    where it lies: a folder, or a database URL and a store    database    transactions, migrations, named errors
store       bundles on disk, by the SHA-256 of their manifest         catalogue   versions, aliases: what is served
keys        API keys: scopes, expiry, rotation, limits                audit       an append-only table of admin acts
"""
