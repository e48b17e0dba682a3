"""The fallback service: Open Inference Protocol v2 over HTTP.

settings    what can be set                         models      bundles → models, checked before they are served
keys        who may ask                             batcher     one thread a model, batches without waiting
app         create_app(models, settings) → FastAPI  infer       the fast path, raw ASGI
server      serve(folder, settings): bind, drain    process     running_service(folder): a real one, for embedding
"""
