-- Hosts enrol with tickets of their owners, join a mesh, and prove what they claim.

alter table hosts drop constraint hosts_state, drop constraint hosts_name;
alter table hosts
    add constraint hosts_state check
        (state in ('enrolled', 'verifying', 'ready', 'suspect', 'refused', 'draining', 'gone', 'banned')),
    add paused           boolean not null default false,
    add term             text not null default 'on_demand' constraint hosts_term check (term in ('on_demand', 'spot')),
    add reason_code      text,
    add reason_message   text,
    add reason_at_ms     bigint,
    add proven           jsonb,
    add refusals         integer not null default 0,
    add retry_up_ms      bigint,
    add agent_key        text,
    add mesh_address     inet constraint hosts_mesh_address unique,
    add mesh_key         text,
    add mesh_key_next    text,
    add constraint hosts_mesh_keys_differ check (mesh_key <> mesh_key_next);
-- A name is free again when its host has left.
create unique index hosts_name on hosts (hotkey, name) where state not in ('gone', 'banned');
comment on column hosts.paused is 'Whether its owner wants no new jobs on it for now';
comment on column hosts.term is 'For how long its capacity is offered';
comment on column hosts.reason_code is 'Why it takes no jobs, for programs: its failed proof, or who took it out';
comment on column hosts.reason_message is 'The same for people';
comment on column hosts.reason_at_ms is 'Since when';
comment on column hosts.proven is 'The claims it passed its proofs with';
comment on column hosts.refusals is 'Failed proofs in a row; the pause before the next try grows with them';
comment on column hosts.retry_up_ms is 'The control clock when a refused host is tested again';
comment on column hosts.agent_key is 'Ed25519 public key of its agent, hexadecimal';
comment on column hosts.mesh_address is 'Its address in the mesh, by which it is known when it speaks';
comment on column hosts.mesh_key is 'WireGuard public key that the hub lets in, base64';
comment on column hosts.mesh_key_next is 'The key that its agent is about to use instead';

-- These numbers were random and grow from now on: a report of an earlier process is not believed.
update hosts set session = null, sequence = 0;
comment on column hosts.session is 'Number of its agent process, from the last report; later ones have larger ones';

-- Groups are read from the jobs that have open leases.
create index jobs_by_group on jobs (customer_id, (request ->> 'group'))
    where state in ('placed', 'running', 'cancelling');

alter table control_clock add hub_at_ms bigint;
comment on column control_clock.hub_at_ms is 'When the hub last said that it lets hosts in; none where there never was one';

-- Every key that a host ever announced: a key is let in for one host, once, and the key of a
-- host that was sent away never again.
create table mesh_keys (
    mesh_key     text primary key,
    host_id      uuid not null references hosts,
    since_ms     bigint not null default now_ms()
);
create index mesh_keys_by_host on mesh_keys (host_id);
comment on table mesh_keys is 'WireGuard public keys and the one host each belongs to';
comment on column mesh_keys.mesh_key is 'Base64';
comment on column mesh_keys.host_id is 'Whose';
comment on column mesh_keys.since_ms is 'When it was announced';

create table tickets (
    ticket       text not null,
    hotkey       text not null,
    agent_key    text not null,
    host_id      uuid not null references hosts,
    used_at_ms   bigint not null default now_ms(),
    -- Of its miner: nobody uses up the tickets of others.
    constraint tickets_pkey primary key (hotkey, ticket)
);
create index tickets_by_host on tickets (host_id);
comment on table tickets is 'Tickets that were used; each works for one agent';
comment on column tickets.ticket is 'Its random id';
comment on column tickets.hotkey is 'Who signed it';
comment on column tickets.agent_key is 'Which agent used it; the same one may ask again';
comment on column tickets.host_id is 'The host it enrolled';
comment on column tickets.used_at_ms is 'When';

create table nonces (
    signer        text not null,
    nonce         text not null,
    expires_at_ms bigint not null,
    constraint nonces_once primary key (signer, nonce)
);
create index nonces_expired on nonces (expires_at_ms);
comment on table nonces is 'Nonces of signed requests, kept until the requests expire';
comment on column nonces.signer is 'The public key';
comment on column nonces.nonce is 'Random, chosen by the signer';
comment on column nonces.expires_at_ms is 'Afterwards the request is refused for its age';

create table challenges (
    challenge_id  uuid primary key,
    host_id       uuid not null references hosts,
    challenge     jsonb not null,
    claims        jsonb not null,
    drawn_at_ms   bigint not null default now_ms(),
    verdict       jsonb,
    decided_at_ms bigint,
    constraint challenges_decided check ((verdict is null) = (decided_at_ms is null))
);
create unique index challenges_one_open on challenges (host_id) where verdict is null;
create index challenges_by_host on challenges (host_id, challenge_id desc);
comment on table challenges is 'Tests of what hosts claim';
comment on column challenges.challenge_id is 'UUID v7';
comment on column challenges.host_id is 'Who is tested';
comment on column challenges.challenge is 'What the host is asked to do';
comment on column challenges.claims is 'The inventory that it must prove';
comment on column challenges.drawn_at_ms is 'When it was drawn';
comment on column challenges.verdict is 'What came of it';
comment on column challenges.decided_at_ms is 'When it was judged';

create table challenge_steps (
    challenge_id   uuid not null references challenges,
    step           integer not null,
    reveal         text,
    drawn_up_ms    bigint not null default control_ms(),
    sent_at_ms     bigint,
    sent_up_ms     bigint,
    answer         jsonb,
    answered_at_ms bigint,
    answered_up_ms bigint,
    primary key (challenge_id, step),
    constraint challenge_steps_in_order check (answer is null or sent_at_ms is not null)
);
comment on table challenge_steps is 'The exchanges of a challenge: what was sent, what came back, and when on this database''s clock';
comment on column challenge_steps.challenge_id is 'The challenge';
comment on column challenge_steps.step is 'Counted from 0, which sends the challenge itself';
comment on column challenge_steps.reveal is 'The nonce that this step sends, hexadecimal';
comment on column challenge_steps.drawn_up_ms is 'The control clock when it was drawn';
comment on column challenge_steps.sent_at_ms is 'When it was first handed to the host';
comment on column challenge_steps.sent_up_ms is 'The control clock then';
comment on column challenge_steps.answer is 'What the host answered first; later answers are not taken';
comment on column challenge_steps.answered_at_ms is 'When the answer was complete';
comment on column challenge_steps.answered_up_ms is 'The control clock then';

create table releases (
    version      text not null constraint releases_three_numbers check (version ~ '^[0-9]{1,9}(\.[0-9]{1,9}){2}$'),
    target       text not null,
    manifest     jsonb not null,
    signature    text not null,
    bytes        bytea not null,
    published_at_ms bigint not null default now_ms(),
    constraint releases_version primary key (version, target)
);
comment on table releases is 'Agents that hosts may upgrade to, signed off line';
comment on column releases.version is 'Such as 0.2.0';
comment on column releases.target is 'Such as x86_64-linux';
comment on column releases.manifest is 'What was signed';
comment on column releases.signature is 'By the release key, hexadecimal';
comment on column releases.bytes is 'The program; its SHA-256 stands in the manifest';
comment on column releases.published_at_ms is 'When it was published';

create table blob_claims (
    host_id      uuid not null references hosts,
    sha256       bytea not null,
    size         bigint not null,
    claimed_at_ms bigint not null default now_ms(),
    constraint blob_claims_once primary key (host_id, sha256)
);
comment on table blob_claims is 'What a host has stored for its leases and challenges within a day';
comment on column blob_claims.host_id is 'Who stored it';
comment on column blob_claims.sha256 is 'SHA-256 of the bytes; they may not have come';
comment on column blob_claims.size is 'Bytes';
comment on column blob_claims.claimed_at_ms is 'When';
