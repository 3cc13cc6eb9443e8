-- What customers ask of a place, quotes, baselines, and why an attempt is where it is.

alter table hosts
    drop column trust,
    add region text constraint hosts_region check (region ~ '^[a-z0-9-]{1,32}$');
comment on column hosts.region is 'Where its owner says it is';

alter table leases
    add reason            text not null default 'only_fit',
    add trust             text not null default 'unrated' constraint leases_trust check
        (trust in ('verified', 'attested', 'cloud', 'unrated')),
    add baseline_gpu_hour bigint constraint leases_baseline check (baseline_gpu_hour >= 0);
comment on column leases.reason is 'Why this host was chosen, for programs';
comment on column leases.trust is 'What was known of the host when it was chosen';
comment on column leases.baseline_gpu_hour is 'Baseline of its GPUs when the host was chosen, in micro-USD per GPU-hour; none where there is none';

create table baselines (
    class         text not null,
    region        text not null,
    epoch         bigint not null,
    gpu_hour      bigint not null,
    source        text not null,
    fetched_at_ms bigint not null,
    constraint baselines_one primary key (class, region, epoch),
    constraint baselines_region check (region = '*' or region ~ '^[a-z0-9-]{1,32}$'),
    constraint baselines_price check (gpu_hour >= 0)
);
comment on table baselines is 'What clouds ask for devices on demand, epoch by epoch; the newest of a class and region counts';
comment on column baselines.class is 'Class of the devices';
comment on column baselines.region is 'Where, or * for anywhere else';
comment on column baselines.epoch is 'The epoch from which on it counts';
comment on column baselines.gpu_hour is 'micro-USD per hour of one device';
comment on column baselines.source is 'Whose prices it was made from';
comment on column baselines.fetched_at_ms is 'When the newest of those was fetched';

create table quotes (
    quote_id        uuid primary key,
    customer_id     uuid not null references customers,
    idempotency_key text not null,
    request_sha256  bytea not null,
    request         jsonb not null,
    hold_ms         bigint not null,
    asked_at_ms     bigint not null default now_ms(),
    answer          jsonb,
    answered_at_ms  bigint,
    host_id         uuid references hosts,
    expires_at_ms   bigint,
    job_id          uuid references jobs,
    constraint quotes_key unique (customer_id, idempotency_key),
    constraint quotes_hold check (hold_ms between 0 and 300000),
    constraint quotes_answered check ((answer is null) = (answered_at_ms is null)),
    constraint quotes_held check ((host_id is null) = (expires_at_ms is null) and (host_id is null or answer is not null)),
    constraint quotes_used check (job_id is null or host_id is not null)
);
create unique index quotes_of_jobs on quotes (job_id) where job_id is not null;
create index quotes_asked on quotes (asked_at_ms) where answer is null;
create index quotes_held on quotes (host_id, expires_at_ms) where host_id is not null and job_id is null;
comment on table quotes is 'Placements that are held for customers until they expire';
comment on column quotes.quote_id is 'UUID v7';
comment on column quotes.customer_id is 'Who asked';
comment on column quotes.idempotency_key is 'Chosen by the customer, so that asking again is asking once';
comment on column quotes.request_sha256 is 'Of the call''s body, so that a key is not used for another one';
comment on column quotes.request is 'What a job would ask for';
comment on column quotes.hold_ms is 'For how long it is held from its answer on; 0 where only the answer is wanted';
comment on column quotes.asked_at_ms is 'When it was asked for';
comment on column quotes.answer is 'The placement with its price, or why there is none; none until the scheduler has looked';
comment on column quotes.answered_at_ms is 'When that was';
comment on column quotes.host_id is 'The host whose capacity is held; none where nothing is held';
comment on column quotes.expires_at_ms is 'Until when';
comment on column quotes.job_id is 'The job that has used it';
