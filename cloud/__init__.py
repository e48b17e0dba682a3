"""The fallback service: Open Inference Protocol v2 over HTTP.

settings    what can be set                         models      bundles → models, checked before they are served
keys        who may ask                             batcher     one thread a model, batches without waiting
lanes       who answers a path                      exchange    one infer request, from its headers to its answer
direct      the fast path: the connection serves    infer       the same exchange as a plain ASGI application
waiting     who comes too early waits outside       workers     several processes behind one port
metrics     what is counted                         ledger      numbers that workers keep together; share
status      a page for people; history              tracing     a span a batch, if asked for
app         create_app(models, settings) → FastAPI  deploy      hot swap; registry/: versions, aliases, keys
server      serve(place, settings): bind, drain     process     running_service(folder): a real one, for embedding
on_ray      the same application on Ray Serve
"""
