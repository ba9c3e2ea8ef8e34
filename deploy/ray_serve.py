"""The server as an application of Ray Serve: replicas that share nothing but the files of keys.

    pip install '.[serve,ray]'
    serve run deploy.ray_serve:app model=finch-jargon replicas=2 max_batch=16

Ray starts the replicas, and others for those that die, and shares out the requests. Paths are those of the machine on
which a replica runs.
"""

from ray import serve

NUMBERS = ("max_batch", "queue", "max_tokens", "max_prompt")
STOPPING = 45  # seconds that a replica has to finish what runs


def app(given):
    """What `serve run` starts. given: {option of `application`: text}."""
    numbers = {name: int(given[name]) for name in ("replicas", *NUMBERS) if name in given}
    numbers |= {name: float(given[name]) for name in ("cpus", "gpus") if name in given}
    return application(**{**given, **numbers})


def application(model, replicas=1, engine="jax", cpus=1.0, gpus=0.0, **options):
    """The application of a model, a path or a name. engine: the backend of Keras. cpus, gpus: of each replica. options:
    of `service`.
    """

    def build():
        from bert4keras_rwkv.server.app import make_app

        return make_app(service(model, **options))

    deployment = serve.deployment(
        serve.ingress(build)(),
        name="bert4keras_rwkv",
        num_replicas=replicas,
        max_ongoing_requests=2**20,  # each is refused or taken up by its replica, which knows best
        graceful_shutdown_timeout_s=STOPPING,
        ray_actor_options={
            "num_cpus": cpus,
            "num_gpus": gpus,
            "runtime_env": {"env_vars": {"KERAS_BACKEND": engine}},
        },
    )
    return deployment.bind()


def service(model, adapter=None, api_key_file=None, state_key_file=None, cache=None, **limits):
    """The `Service` of one replica, which has begun. cache: a folder, which replicas of one machine may share. limits:
    fields of `Limits`.
    """
    from bert4keras_rwkv.models import RWKV
    from bert4keras_rwkv.server.access import Access, read_keys
    from bert4keras_rwkv.server.begin import Limits, Remembering, begin_service
    from bert4keras_rwkv.weights.checkpoint import named

    access = Access(None if api_key_file is None else read_keys(api_key_file))
    rwkv = RWKV.from_preset(named(model), quantization="auto")
    if adapter is not None:
        rwkv.load_adapter(adapter)
    remembering = Remembering(cache, key=state_key_file)
    return begin_service(rwkv, access=access, limits=Limits(**limits), remembering=remembering)
