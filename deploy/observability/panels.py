"""What the dashboards show. make.py turns this into Grafana's JSON.

A panel: kind, title, unit, queries as (expression, legend), what it means. `limits`: where a value becomes doubtful and bad (falling
limits: low is bad). WHERE is the choice at the top of a dashboard; rates are over Grafana's own interval, totals over the range shown.
"""

WHERE = 'namespace=~"$namespace",model=~"$model",instance=~"$instance"'
RATE = '[$__rate_interval]'
RANGE = '[$__range]'


def panel(kind, title, unit, queries, about, w=12, h=8, **more):
    return {'type': kind, 'title': title, 'unit': unit, 'queries': queries, 'about': about, 'w': w, 'h': h, **more}


def lines(title, unit, queries, about, **more):
    return panel('timeseries', title, unit, queries, about, **{'min': 0, **more})


def number(title, unit, query, about, **more):
    return panel('stat', title, unit, [(query, '')], about, **{'w': 4, 'h': 4, **more})


def bars(title, unit, query, legend, about, **more):
    return panel('bargauge', title, unit, [(query, legend)], about, **{'min': 0, 'h': 7, **more})


def series(name, *labels):
    return f'fewbit_{name}{{{",".join([WHERE, *labels])}}}'


def rate(name, *labels, by='', window=RATE):
    by = f' by ({by}) ' if by else ''
    return f'sum{by}(rate({series(name, *labels)}{window}))'


def total(name, *labels, by=''):
    """Over the range that is shown."""
    by = f' by ({by}) ' if by else ''
    return f'sum{by}(increase({series(name, *labels)}{RANGE}))'


def quantile(q, name):
    return f'histogram_quantile({q}, {rate(name + "_bucket", by="le")})'


def quantiles(name, *qs):
    return [(quantile(q, name), f'p{100 * q:g}') for q in qs or (0.5, 0.9, 0.99)]


def mean(name):
    return f'{rate(name + "_sum")} / {rate(name + "_count")}'


REFUSED = 'code=~"RESOURCE_EXHAUSTED|UNAVAILABLE"'
FAILED = 'code=~"RESOURCE_EXHAUSTED|UNAVAILABLE|INTERNAL"'
GAVE_UP = 'reason=~"client_left|deadline|slow_reader"'
UNACCEPTABLE = 'code=~"INVALID_ARGUMENT|UNAUTHENTICATED|NOT_FOUND|ALREADY_EXISTS"'
GENERATED = 'kind="generated"'
DELIVERED = 'outcome="delivered"'
RESERVED = 'basis="reserved"'
USED = 'basis="used"'
BUSY = 'phase!="idle"'
IDLE = 'phase="idle"'
MET = 'met="true"'

# Colours by the name of a series, as regular expressions; what is not here gets the next of the palette.
PHASES = {'prefill': 'blue', 'decode': 'green', 'idle': '#5a5d66'}
ENDS = {'length': 'green', 'eos': 'dark-green', 'stop_token': 'light-green', 'stop_string': 'super-light-green',
        'aborted|drained|time_limit': 'blue', 'queue_full': 'red', 'too_many_streams': 'light-red', 'internal|engine_failed': 'purple',
        'draining': 'yellow', 'deadline': 'orange', 'client_left': 'dark-orange', 'slow_reader': 'light-orange',
        'invalid': '#8e8ea0', 'api_key': '#b0b0c0', 'unknown_model': '#6a6a7a', 'duplicate_id': '#4c4c58'}
LOAD = {'running': 'green', 'waiting': 'orange'}
REPLICA = '{{pod}} {{instance}}'


def by_phase(name, *labels, factor=''):
    """One query per phase, idle on top."""
    return [(f'{factor}{rate(name, *labels, phase_is(phase))}', phase) for phase in ('decode', 'prefill', 'idle')]


def phase_is(phase):
    return f'phase="{phase}"'


DEVICE_TIME = [(f'{query} / {rate("gpu_seconds_total")}', phase) for query, phase in by_phase('gpu_seconds_total')]
# Tokens of the replicas that know what energy they take.
METERED = 'and on (job, instance) fewbit_energy_joules_total'

TARGETS = lines(
    'Targets met', 'percentunit', [(f'{rate("slo_requests_total", MET, by="slo")} / {rate("slo_requests_total", by="slo")}', '{{slo}}')],
    'Share of the requests within --slo_ttft_ms and --slo_tpot_ms; nothing without targets.', max=1, limits=(0.99, 0.95))
KV = lines('KV cache in use', 'percentunit', [(series('kv_usage_ratio'), REPLICA)],
           'Share of the blocks in use, per replica. Full is fine as long as nobody waits.', max=1, limits=(0.8, 0.95))
WAITING = lines('Running and waiting', 'none',
                [(f'sum({series("requests_running")})', 'running'), (f'sum({series("requests_waiting")})', 'waiting')],
                'Requests in the batch, and those that wait for a place in it.', colors=LOAD)

FIRING = 'sum(ALERTS{alertname=~"Fewbit.*",alertstate="firing"}) or 0 * count(fewbit:requests:rate5m)'

OVERVIEW = [
    number('Alerts', 'none', FIRING, 'Alerts that fire, of all models. Each has an entry in deploy/README.md.', w=3, limits=(1, 2),
           empty='no rules'),
    number('Replicas', 'none', f'count({series("build_info")})', 'Replicas that were scraped of late.', w=3),
    number('Requests', 'reqps', rate('requests_total'), 'Requests that ended, per second, however they ended.', decimals=1),
    number('Generated tokens', 'suffix: tok/s', rate('step_tokens_total', 'phase="decode"'),
           'Tokens run in decode, per second. The first token of a request comes out of its prefill and is not among them.', decimals=0),
    number('First token, p99', 's', quantile(0.99, 'time_to_first_token_seconds'),
           'A hundredth of the requests waits longer for its first token, queue included.'),
    number('Between tokens, p99', 's', quantile(0.99, 'inter_token_seconds'), 'A hundredth of the gaps between two tokens is longer.', w=3),
    number('Refused or failed', 'percentunit', f'{rate("requests_total", FAILED)} / {rate("requests_total")}',
           'Share of the requests that ended with RESOURCE_EXHAUSTED, UNAVAILABLE or INTERNAL.', limits=(0.01, 0.05), decimals=1,
           w=3),
    lines('Tokens', 'suffix: tok/s', [(rate('step_tokens_total', by='phase'), '{{phase}}')],
          'Tokens run per second. Prefill reads prompts, decode writes answers.', colors=PHASES),
    lines('Requests by end', 'reqps', [(f'{rate("requests_total", by="reason")} > 0', '{{reason}}')],
          'Requests per second by how they ended. length, eos, stop_token and stop_string are ordinary ends.', stack='normal',
          colors=ENDS),
    lines('Time to the first token', 's', quantiles('time_to_first_token_seconds'), 'From arrival to the first token, queue included.'),
    lines('Between two tokens', 's', quantiles('inter_token_seconds'), 'Gaps between two tokens of a request, as the server makes them.'),
    WAITING,
    KV,
    lines('Whole request', 's', quantiles('request_seconds'), 'From arrival to the last token; requests that ended well.'),
    lines('Step', 's', [*quantiles('step_seconds', 0.5, 0.99), (mean('step_seconds'), 'mean')],
          'Duration of a step, which gives every running request at most one token.'),
    lines('Batch', 'none', [(mean('step_batch_size'), 'sequences per step'), (mean('step_tokens'), 'tokens per step')],
          'Mean sequences and tokens in a step. More is cheaper for all and slower for each.'),
    lines('Length of requests', 'suffix: tokens',
          [(quantile(q, f'request_{kind}_tokens'), f'{kind}, p{100 * q:g}') for kind in ('prompt', 'generated') for q in (0.5, 0.99)],
          'Prompt and answer lengths of requests that ran.'),
    TARGETS,
    bars('Requests by end, in the time shown', 'none', f'sort_desc({total("requests_total", by="code, reason")} > 0)',
         '{{code}} {{reason}}', 'Requests that ended in the range shown, by code and reason.', decimals=0, h=8),
]

TOKENS = total('tokens_total', GENERATED, DELIVERED)
METERED_TOKENS = f'sum(increase({series("tokens_total", GENERATED, DELIVERED)}{RANGE}) {METERED})'
COST = [
    number('Dollars per million tokens', 'currencyUSD', f'1e6 * {total("cost_usd_total", RESERVED)} / {TOKENS}',
           'All that the replicas cost in the range shown, idle time included, per million generated tokens that clients got.', w=5,
           decimals=2),
    number('The same, while working', 'currencyUSD', f'1e6 * {total("cost_usd_total", USED)} / {TOKENS}',
           'Only the time in which the devices worked: what the price would come near to at full load.', w=5, decimals=2),
    number('Spent', 'currencyUSD', total('cost_usd_total', RESERVED), 'Dollars at --gpu_hour_usd in the range shown.', decimals=4),
    number('Idle', 'percentunit', f'{total("gpu_seconds_total", IDLE)} / {total("gpu_seconds_total")}',
           'Share of the time shown in which the devices did nothing.', limits=(0.5, 0.8), decimals=0),
    number('Charged to tenants', 'percentunit', f'{total("tenant_cost_usd_total")} / {total("cost_usd_total", USED)}',
           'Share of the used dollars that belongs to requests of tenants, "none" and "other" included. The rest went into requests '
           'that run or ended without a first token.', w=3, decimals=0),
    number('Energy per token', 'joule', f'{total("energy_joules_total")} / {METERED_TOKENS}',
           'Joules of whole GPUs per generated token that clients got from them. CPUs say nothing.', w=3, decimals=1, empty='no GPU'),
    lines('Dollars per hour', 'currencyUSD', by_phase('cost_usd_total', RESERVED, factor='3600 * '),
          'What the replicas cost, by what their devices did.', stack='normal', colors=PHASES),
    lines('Dollars per million tokens', 'currencyUSD',
          [(f'1e6 * {rate("cost_usd_total", by="basis")} / on () group_left {rate("tokens_total", GENERATED, DELIVERED)}', '{{basis}}')],
          'Per million generated tokens that clients got. reserved counts all time, used only work. Tokens count when their request '
          'ends, so short ranges jump.'),
    lines('Device time', 'percentunit', DEVICE_TIME,
          'What the devices did.', stack='normal', max=1, colors=PHASES),
    lines('Generated tokens by tenant', 'suffix: tok/s', [(rate('tenant_tokens_total', GENERATED, by='tenant'), '{{tenant}}')],
          'When their requests end. none: no tenant named; other: tenants behind the first --max_tenants.', stack='normal'),
    bars('Dollars by tenant, in the time shown', 'currencyUSD', f'sort_desc({total("tenant_cost_usd_total", by="tenant")} > 0)',
         '{{tenant}}', 'For the device time of a tenant\'s requests that ended.', decimals=4),
    bars('Tokens by tenant, in the time shown', 'short', f'sort_desc({total("tenant_tokens_total", DELIVERED, by="tenant")} > 0)',
         '{{tenant}}', 'Prompt and generated tokens of requests that ended well.', decimals=0),
    lines('Power', 'watt', [(f'sum({series("device_power_watts")})', 'drawn'), (f'sum({series("device_power_limit_watts")})', 'limit')],
          'Of the GPUs together.', empty='no GPU'),
    lines('Energy per generated token', 'joule',
          [(f'{rate("energy_joules_total")} / sum(rate({series("tokens_total", GENERATED, DELIVERED)}{RATE}) {METERED})',
            'joules per token')],
          'Joules of whole GPUs per generated token that clients got from them. Tokens count when their request ends.', empty='no GPU'),
]

OVERLOAD = [
    number('Refused', 'percentunit', f'{rate("requests_total", REFUSED)} / {rate("requests_total")}',
           'Share of the requests that ended with RESOURCE_EXHAUSTED or UNAVAILABLE.', limits=(0.01, 0.05), decimals=1),
    number('Waiting', 'none', f'sum({series("requests_waiting")})', 'Requests that wait for a place in the batch.'),
    number('In the queue, p90', 's', quantile(0.9, 'queue_seconds'), 'A tenth of the requests waits longer for its first step.',
           limits=(1, 2)),
    number('Wasted', 'percentunit', f'{rate("wasted_tokens_total", GENERATED)} / {rate("tokens_total", GENERATED)}',
           'Share of the generated tokens that nobody got.', limits=(0.05, 0.2), decimals=1),
    number('Open calls', 'none', f'sum({series("open_streams")})', 'Generate and GenerateStream calls that are open.'),
    number('KV cache in use', 'percentunit', f'max({series("kv_usage_ratio")})', 'Of the replica with the fullest one.',
           limits=(0.8, 0.95), decimals=0),
    lines('Refused requests', 'reqps', [(f'{rate("requests_total", REFUSED, by="code, reason")} > 0', '{{code}} {{reason}}')],
          'Requests per second that were refused. queue_full: more replicas, or clients that honour the retry delay.', stack='normal',
          empty='none refused', colors=ENDS),
    lines('Time in the queue', 's', quantiles('queue_seconds'), 'From arrival to the first step.'),
    WAITING,
    lines('Waiting prompt tokens', 'suffix: tokens', [(series('waiting_tokens'), REPLICA)],
          'Prompt tokens of waiting requests, per replica; --max_waiting_tokens bounds them.'),
    lines('Wasted tokens', 'suffix: tok/s', [(f'{rate("wasted_tokens_total", GENERATED, by="reason")} > 0', '{{reason}}'),
                                            (rate('dropped_step_tokens_total'), 'dropped from steps')],
          'Generated tokens per second that nobody got. client_left and deadline: clients give up before the answer is complete. Dropped '
          'from steps: run for requests that had ended, because steps are launched ahead.', stack='normal'),
    lines('Calls that gave up', 'reqps',
          [(f'{rate("requests_total", GAVE_UP, by="reason")} > 0', '{{reason}}'),
           (rate('abandoned_calls_total'), 'all, also behind the last token')],
          'All also counts calls that ended for the client when everything had been generated, but not yet read.'),
    KV,
    TARGETS,
    lines('Other refusals', 'reqps',
          [(f'{rate("requests_total", UNACCEPTABLE, by="reason")} > 0',
            '{{reason}}')],
          'Requests per second that no server would have taken: invalid, no API key of ours, another model.', empty='none'),
    lines('Open calls', 'none', [(series('open_streams'), REPLICA)], 'Per replica; --max_streams bounds them.'),
]

DEVICE = [
    panel('stat', 'GPU', 'none', [(series('device_info'), '{{gpu}}')], 'What NVML calls it.', w=6, h=4, text='name', empty='no GPU'),
    number('Working', 'percentunit', f'{rate("gpu_seconds_total", BUSY)} / {rate("gpu_seconds_total")}',
           'Share of the time inside steps.', w=3, decimals=0),
    number('Power', 'watt', f'sum({series("device_power_watts")})', 'Of the GPUs together.', w=3, decimals=0, empty='no GPU'),
    number('Temperature', 'celsius', f'max({series("device_temperature_celsius")})', 'Of the hottest GPU.', w=3, limits=(75, 85),
           empty='no GPU'),
    number('Memory in use', 'percentunit', f'max({series("device_memory_used_bytes")} / {series("device_memory_bytes")})',
           'Of the fullest GPU. The server takes what it needs when it starts; later growth is somebody else\'s.', w=3, decimals=0,
           empty='no GPU'),
    number('Memory errors', 'none', f'max({series("device_ecc_errors")})', 'That could not be corrected, since the driver was loaded.',
           w=3, limits=(1, 2), empty='no GPU'),
    number('Slowed down', 'none', f'sum(max by (instance) ({series("device_throttled")}))', 'GPUs that run slower than they could.', w=3,
           limits=(1, 2), empty='no GPU'),
    lines('Time by phase', 'percentunit', DEVICE_TIME,
          'What the devices did, as the server knows it.', stack='normal', max=1, colors=PHASES),
    lines('Utilization', 'percentunit',
          [(series('device_utilization_ratio'), f'{REPLICA} kernels'), (series('device_memory_utilization_ratio'), f'{REPLICA} memory')],
          'As the driver knows it: share of the time with a kernel, and with memory traffic.', max=1, empty='no GPU'),
    lines('Power', 'watt', [(series('device_power_watts'), REPLICA), (series('device_power_limit_watts'), f'{REPLICA} limit')],
          'Of each GPU, and what it may draw.', empty='no GPU'),
    lines('Temperature', 'celsius', [(series('device_temperature_celsius'), REPLICA)], 'Of each GPU.', limits=(75, 85),
          empty='no GPU'),
    lines('Memory', 'bytes', [(series('device_memory_used_bytes'), REPLICA), (series('device_memory_bytes'), f'{REPLICA} total')],
          'Of each GPU: in use by whomever, and all there is.', empty='no GPU'),
    lines('Clock', 'hertz', [(series('device_sm_clock_hertz'), REPLICA)],
          'Of the processors. It falls when the GPU idles, and when it is slowed down.', empty='no GPU'),
    lines('Slowed down', 'none', [(f'sum by (reason) ({series("device_throttled")})', '{{reason}}')],
          'GPUs that run slower than they could, by reason. power is ordinary at full load, thermal and hardware are not.', empty='no GPU',
          decimals=0),
    lines('Step', 's', quantiles('step_seconds'), 'Duration of a step.'),
    bars('Start', 's', series('startup_seconds'), f'{REPLICA} {{{{phase}}}}', 'What the last start of each replica took, by phase.'),
    bars('Bits per weight', 'suffix: bits', series('weight_bits'), f'{REPLICA} {{{{part}}}}', 'Average, from the bytes in the file.',
         max=16, decimals=2),
    panel('stat', 'Versions', 'none', [(series('build_info'), '{{version}} {{commit}} on {{device}}')],
          'What runs, one per replica. Two versions for long: a rollout is stuck.', w=24, h=4, text='name'),
]

DASHBOARDS = {
    'overview': {'about': 'How much is asked, how fast it is answered, how full the replicas are.', 'panels': OVERVIEW},
    'cost': {'about': 'What a token costs, who spends it, what idles.', 'panels': COST},
    'overload': {'about': 'Who is refused, who waits, what is done for nobody.', 'panels': OVERLOAD},
    'device': {'about': 'What the GPU or the CPUs do, and how they are.', 'panels': DEVICE},
}
