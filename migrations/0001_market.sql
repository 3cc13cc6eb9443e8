-- All times are milliseconds since 1970-01-01T00:00:00Z on this database's clock;
-- all money is micro-USD; all sizes are bytes. Names of constraints are part of
-- the interface: the store maps them to errors.

create function now_ms() returns bigint language sql volatile parallel safe
    return (extract(epoch from clock_timestamp()) * 1000)::bigint;

-- Use added up until now: never more than a tolerated gap since the last reading, never
-- after the control plane decided to stop it, never beyond the longest run.
create function metered_ms(used_ms bigint, run_ms_max bigint, metered_at_ms bigint, stop_at_ms bigint, gap_ms_max bigint)
    returns bigint language sql volatile parallel safe
    return least(run_ms_max, used_ms + greatest(0, least(
        least(now_ms(), coalesce(stop_at_ms, now_ms())) - metered_at_ms, gap_ms_max)));

create table settings (
    name  text primary key,
    value jsonb not null
);
comment on table settings is 'What an operator can change while the market runs';
comment on column settings.name is 'Such as default_image';
comment on column settings.value is 'Its value';

create table control_clock (
    only_row   boolean primary key default true constraint control_clock_one_row check (only_row),
    up_ms      bigint not null default 0,
    beat_at_ms bigint not null default now_ms()
);
comment on table control_clock is 'Time during which hosts could reach the control plane';
comment on column control_clock.only_row is 'There is one clock';
comment on column control_clock.up_ms is 'Total uptime; stands still while no gateway runs';
comment on column control_clock.beat_at_ms is 'When a gateway last advanced it';
insert into control_clock default values;

-- The control clock between two beats as well; a beat adds one second at most.
create function control_ms() returns bigint language sql volatile
    return (select up_ms + greatest(0, least(now_ms() - beat_at_ms, 1000)) from control_clock);

create table customers (
    customer_id   uuid primary key,
    name          text not null constraint customers_name unique,
    created_at_ms bigint not null default now_ms()
);
comment on table customers is 'Who pays for jobs';
comment on column customers.customer_id is 'UUID v7';
comment on column customers.name is 'For operators';
comment on column customers.created_at_ms is 'When it was made';

create table api_keys (
    key_id        uuid primary key,
    customer_id   uuid not null references customers,
    secret_sha256 bytea not null constraint api_keys_secret unique,
    label         text not null,
    scopes        text[] not null,
    created_at_ms bigint not null default now_ms(),
    revoked_at_ms bigint
);
create index api_keys_by_customer on api_keys (customer_id);
comment on table api_keys is 'Keys of customers; the secret itself is never stored';
comment on column api_keys.key_id is 'UUID v7';
comment on column api_keys.customer_id is 'Whose';
comment on column api_keys.secret_sha256 is 'SHA-256 of the 256-bit random token';
comment on column api_keys.label is 'What its owner calls it';
comment on column api_keys.scopes is 'What it may do';
comment on column api_keys.created_at_ms is 'When it was made';
comment on column api_keys.revoked_at_ms is 'When it stopped working';

create table hosts (
    host_id          uuid primary key,
    name             text not null constraint hosts_name unique,
    hotkey           text not null,
    state            text not null default 'enrolled'
        constraint hosts_state check (state in ('enrolled', 'ready', 'suspect', 'draining', 'gone')),
    trust            text not null default 'unrated' constraint hosts_trust check (trust in ('unrated')),
    inventory        jsonb,
    inventory_at_ms  bigint,
    gpu_hour         bigint not null constraint hosts_gpu_hour check (gpu_hour >= 0),
    vcpu_hour        bigint not null constraint hosts_vcpu_hour check (vcpu_hour >= 0),
    gib_hour         bigint not null constraint hosts_gib_hour check (gib_hour >= 0),
    generation       bigint not null default 1,
    seen_generation  bigint not null default 0,
    session          bigint,
    sequence         bigint not null default 0,
    heard_at_ms      bigint,
    heard_up_ms      bigint,
    enrolled_at_ms   bigint not null default now_ms()
);
comment on table hosts is 'Machines that offer capacity';
comment on column hosts.host_id is 'UUID v7';
comment on column hosts.name is 'For people';
comment on column hosts.hotkey is 'The miner it belongs to';
comment on column hosts.state is 'See the host states of the domain';
comment on column hosts.trust is 'How far its claims were tested';
comment on column hosts.inventory is 'What it says it has; changes once a second at most';
comment on column hosts.inventory_at_ms is 'Since when it says so';
comment on column hosts.gpu_hour is 'Price of one GPU for an hour';
comment on column hosts.vcpu_hour is 'Price of one virtual CPU for an hour';
comment on column hosts.gib_hour is 'Price of one GiB of memory for an hour';
comment on column hosts.generation is 'Generation of its spec; grows with every change';
comment on column hosts.seen_generation is 'Newest generation it has acted on';
comment on column hosts.session is 'Random number of its agent process, from the last report';
comment on column hosts.sequence is 'Number of the last report within that session';
comment on column hosts.heard_at_ms is 'When it was last heard';
comment on column hosts.heard_up_ms is 'The control clock when it was last heard';
comment on column hosts.enrolled_at_ms is 'When it became known';

create table blobs (
    sha256        bytea primary key constraint blobs_sha256 check (length(sha256) = 32),
    bytes         bytea not null,
    stored_at_ms  bigint not null default now_ms()
);
comment on table blobs is 'Bytes by their hash: result archives';
comment on column blobs.sha256 is 'SHA-256 of the bytes';
comment on column blobs.bytes is 'The bytes; at most 32 MiB';
comment on column blobs.stored_at_ms is 'When they came';

create table jobs (
    job_id          uuid primary key,
    customer_id     uuid not null references customers,
    idempotency_key text not null,
    request_sha256  bytea not null,
    request         jsonb not null,
    state           text not null default 'queued'
        constraint jobs_state check
            (state in ('queued', 'placed', 'running', 'cancelling', 'succeeded', 'failed', 'cancelled')),
    max_spend       bigint not null constraint jobs_max_spend check (max_spend >= 0),
    charged         bigint not null default 0 constraint jobs_charged check (charged between 0 and max_spend),
    attempts        integer not null default 0,
    tries_command   integer not null default 0,
    tries_host      integer not null default 0,
    queued_at_ms    bigint,
    queued_ms       bigint not null default 0,
    created_at_ms   bigint not null default now_ms(),
    finished_at_ms  bigint,
    exit_code       integer,
    reason_code     text,
    reason_message  text,
    result_sha256   bytea references blobs,
    result_truncated boolean not null default false,
    constraint jobs_idempotency_key unique (customer_id, idempotency_key)
);
create index jobs_by_customer on jobs (customer_id, job_id desc);
create index jobs_queued on jobs (job_id) where state = 'queued';
comment on table jobs is 'Requests to run a command';
comment on column jobs.job_id is 'UUID v7, so that ids sort by age';
comment on column jobs.customer_id is 'Who pays';
comment on column jobs.idempotency_key is 'Chosen by the customer; makes submitting again a no-op';
comment on column jobs.request_sha256 is 'Hash of the request body, so that a key is not used for another request';
comment on column jobs.request is 'What was asked for, image pinned to its digest';
comment on column jobs.state is 'See the job states of the domain';
comment on column jobs.max_spend is 'The most all attempts may cost; held from acceptance to the end';
comment on column jobs.charged is 'Charges less refunds so far';
comment on column jobs.attempts is 'Number of leases so far';
comment on column jobs.tries_command is 'Attempts that ended through the command';
comment on column jobs.tries_host is 'Attempts that ended through a host';
comment on column jobs.queued_at_ms is 'Since when it waits, while it waits';
comment on column jobs.queued_ms is 'Time it has waited before, over all attempts';
comment on column jobs.created_at_ms is 'When it was accepted';
comment on column jobs.finished_at_ms is 'When it became final';
comment on column jobs.exit_code is 'Exit code of the attempt that settled it';
comment on column jobs.reason_code is 'Why it failed or what it waits for, for programs';
comment on column jobs.reason_message is 'The same for people';
comment on column jobs.result_sha256 is 'Archive of its result files';
comment on column jobs.result_truncated is 'Whether files were left out because the archive would exceed 32 MiB';

create table leases (
    lease_id        uuid primary key,
    job_id          uuid not null references jobs,
    attempt         integer not null,
    host_id         uuid not null references hosts,
    state           text not null default 'placed'
        constraint leases_state check (state in ('placed', 'running', 'stopping', 'draining', 'closed')),
    devices         text[] not null,
    milli_gpu       bigint not null,
    milli_cpu       bigint not null,
    memory          bigint not null,
    disk            bigint not null,
    gpu_hour        bigint not null,
    vcpu_hour       bigint not null,
    gib_hour        bigint not null,
    run_ms_max      bigint not null,
    capped_by_spend boolean not null,
    placed_at_ms    bigint not null default now_ms(),
    started_at_ms   bigint,
    metered_at_ms   bigint,
    used_ms         bigint not null default 0 constraint leases_used check (used_ms between 0 and run_ms_max),
    stop_reason     text constraint leases_stop_reason check
        (stop_reason in ('cancelled', 'start_timeout', 'run_timeout', 'spend_cap')),
    stop_at_ms      bigint,
    ended_at_ms     bigint,
    closed_at_ms    bigint,
    outcome         jsonb,
    charged         bigint not null default 0 constraint leases_charged check (charged >= 0),
    settled_ms      bigint not null default 0 constraint leases_settled check (settled_ms between 0 and used_ms),
    state_up_ms     bigint not null default control_ms(),
    order_bytes     bigint not null,
    constraint leases_attempt unique (job_id, attempt),
    constraint leases_closed check ((state = 'closed') = (outcome is not null))
);
create unique index leases_one_open on leases (job_id) where state <> 'closed';
create index leases_open_by_host on leases (host_id) where state <> 'closed';
create index leases_unsettled on leases (lease_id) where used_ms > settled_ms;
comment on table leases is 'Attempts of jobs on hosts';
comment on column leases.lease_id is 'UUID v7';
comment on column leases.job_id is 'The job';
comment on column leases.attempt is 'Counted from 1; fences what earlier attempts still say';
comment on column leases.host_id is 'Where it runs';
comment on column leases.state is 'See the lease states of the domain';
comment on column leases.devices is 'UUIDs of its GPUs, whole';
comment on column leases.milli_gpu is 'Priced size: thousandths of a GPU';
comment on column leases.milli_cpu is 'Priced size: thousandths of a virtual CPU';
comment on column leases.memory is 'Priced size: memory';
comment on column leases.disk is 'Working directory';
comment on column leases.gpu_hour is 'Rate when it was placed: one GPU for an hour';
comment on column leases.vcpu_hour is 'Rate when it was placed: one virtual CPU for an hour';
comment on column leases.gib_hour is 'Rate when it was placed: one GiB for an hour';
comment on column leases.run_ms_max is 'Longest run: the run limit, or what the rest of the hold pays for';
comment on column leases.capped_by_spend is 'Whether the hold is what bounds it';
comment on column leases.placed_at_ms is 'When the scheduler chose the host';
comment on column leases.started_at_ms is 'When the gateway heard that the command runs';
comment on column leases.metered_at_ms is 'Until when use has been added up';
comment on column leases.used_ms is 'Use added up, never beyond run_ms_max';
comment on column leases.stop_reason is 'Why the control plane ends it';
comment on column leases.stop_at_ms is 'When it decided so; later use is not charged';
comment on column leases.ended_at_ms is 'When the gateway heard that the command has ended';
comment on column leases.closed_at_ms is 'When everything was delivered or given up';
comment on column leases.outcome is 'How it ended';
comment on column leases.charged is 'Charges less refunds for it so far';
comment on column leases.settled_ms is 'Use that epochs have counted';
comment on column leases.order_bytes is 'Room that its order takes in the spec of its host, at most';
comment on column leases.state_up_ms is 'The control clock when it came into its state; limits are measured from it';

create table log_chunks (
    chunk_id     bigint generated always as identity primary key,
    lease_id     uuid not null references leases,
    stream       text not null constraint log_chunks_stream check (stream in ('stdout', 'stderr')),
    byte_offset  bigint not null,
    bytes        bytea not null,
    at_ms        bigint not null default now_ms(),
    constraint log_chunks_place unique (lease_id, stream, byte_offset)
);
create index log_chunks_in_order on log_chunks (lease_id, chunk_id);
comment on table log_chunks is 'Output of jobs';
comment on column log_chunks.chunk_id is 'Order of arrival within a lease; cursor of readers';
comment on column log_chunks.lease_id is 'Who wrote it';
comment on column log_chunks.stream is 'Where it was written';
comment on column log_chunks.byte_offset is 'Where in the stream it begins';
comment on column log_chunks.bytes is 'The bytes';
comment on column log_chunks.at_ms is 'When they came';

create table ledger_accounts (
    account     text primary key,
    customer_id uuid references customers,
    balance     bigint not null default 0,
    constraint ledger_accounts_funds check (customer_id is null or balance >= 0)
);
comment on table ledger_accounts is 'Sums of the ledger entries by account, kept with them';
comment on column ledger_accounts.account is 'funding, treasury, available:CUSTOMER or held:CUSTOMER';
comment on column ledger_accounts.customer_id is 'Whose, if a customer''s';
comment on column ledger_accounts.balance is 'Sum of its entries; never negative for customers';

create table ledger_postings (
    posting_id      bigint generated always as identity primary key,
    idempotency_key text not null constraint ledger_postings_key unique,
    kind            text not null
        constraint ledger_postings_kind check (kind in ('credit', 'hold', 'charge', 'refund', 'release')),
    job_id          uuid references jobs,
    customer_id     uuid references customers,
    at_ms           bigint not null default now_ms()
);
create index ledger_postings_by_customer on ledger_postings (customer_id, posting_id desc);
create index ledger_postings_by_job on ledger_postings (job_id, posting_id);
comment on table ledger_postings is 'Movements of money';
comment on column ledger_postings.posting_id is 'Order';
comment on column ledger_postings.idempotency_key is 'Makes posting again a no-op';
comment on column ledger_postings.kind is 'What for';
comment on column ledger_postings.job_id is 'The job, if for one';
comment on column ledger_postings.customer_id is 'The customer it touches';
comment on column ledger_postings.at_ms is 'When';

create table ledger_entries (
    posting_id bigint not null references ledger_postings,
    account    text not null references ledger_accounts,
    amount     bigint not null,
    primary key (posting_id, account)
);
comment on table ledger_entries is 'The two sides of each posting';
comment on column ledger_entries.posting_id is 'The posting';
comment on column ledger_entries.account is 'The account';
comment on column ledger_entries.amount is 'What it gains, negative for what it loses';

create function ledger_entries_balance() returns trigger language plpgsql as $$
begin
    if (select sum(amount) from ledger_entries where posting_id = new.posting_id) <> 0 then
        raise exception 'posting % does not sum to zero', new.posting_id
            using errcode = 'check_violation', constraint = 'ledger_entries_zero';
    end if;
    return null;
end $$;
create constraint trigger ledger_entries_zero after insert or update on ledger_entries
    deferrable initially deferred for each row execute function ledger_entries_balance();

create function ledger_is_append_only() returns trigger language plpgsql as $$
begin
    raise exception 'the ledger is append-only' using errcode = 'check_violation', constraint = 'ledger_append_only';
end $$;
create trigger ledger_entries_append_only before update or delete on ledger_entries
    for each row execute function ledger_is_append_only();
create trigger ledger_postings_append_only before update or delete on ledger_postings
    for each row execute function ledger_is_append_only();

create table epochs (
    epoch        bigint primary key,
    state        text not null default 'open'
        constraint epochs_state check (state in ('open', 'closed', 'settled', 'submitted', 'confirmed')),
    chain        text not null,
    opened_at_ms bigint not null default now_ms(),
    closed_at_ms bigint,
    weights      jsonb
);
create unique index epochs_one_open on epochs ((true)) where state = 'open';
comment on table epochs is 'Stretches of time whose deliveries become weights';
comment on column epochs.epoch is 'Counted from 1';
comment on column epochs.state is 'See the epoch states of the domain';
comment on column epochs.chain is 'Where the weights go';
comment on column epochs.opened_at_ms is 'When it began';
comment on column epochs.closed_at_ms is 'When its deliveries were fixed';
comment on column epochs.weights is 'Weight by hotkey, once settled';

create table epoch_leases (
    epoch    bigint not null references epochs,
    lease_id uuid not null references leases,
    hotkey   text not null,
    used_ms  bigint not null constraint epoch_leases_used check (used_ms > 0),
    value    bigint not null constraint epoch_leases_value check (value >= 0),
    primary key (epoch, lease_id)
);
comment on table epoch_leases is 'What each lease delivered in an epoch';
comment on column epoch_leases.epoch is 'The epoch';
comment on column epoch_leases.lease_id is 'The lease';
comment on column epoch_leases.hotkey is 'The miner, as of the epoch''s close';
comment on column epoch_leases.used_ms is 'Use in this epoch';
comment on column epoch_leases.value is 'What it was worth at the lease''s rate';
