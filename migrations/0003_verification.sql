-- Hosts show all that they claim, again and again; what came of it is kept and can be judged again.

create table windows (
    window_id    uuid primary key,
    opens_up_ms  bigint not null,
    beacon       text,
    opened_at_ms bigint,
    constraint windows_beacon check ((beacon is null) = (opened_at_ms is null))
);
-- The next one.
create unique index windows_one_ahead on windows ((true)) where opened_at_ms is null;
comment on table windows is 'Moments at which all hosts with GPUs are tested at once';
comment on column windows.window_id is 'UUID v7';
comment on column windows.opens_up_ms is 'The control clock when it opens, drawn so that nobody can foresee it';
comment on column windows.beacon is 'What everyone is given who is tested in it, hexadecimal; drawn when it opens';
comment on column windows.opened_at_ms is 'When it opened';

alter table challenges
    add kind        text,
    add cause       text not null default 'enrolment' constraint challenges_cause check
        (cause in ('enrolment', 'identity', 'random', 'window', 'lease_start', 'lease', 'lease_end', 'appeal', 'operator')),
    add shadow      boolean not null default false,
    add window_id   uuid references windows,
    add lease_id    uuid references leases,
    add code        text generated always as (case
            when verdict is null then null
            when verdict ? 'passed' then 'passed'
            else coalesce(verdict #>> '{failed,code}', 'void') end) stored,
    add decided_up_ms    bigint,
    add forgotten_at_ms  bigint,
    add appealed_at_ms   bigint,
    add appeal           jsonb,
    add appeal_at_ms     bigint,
    add constraint challenges_appeal check
        ((appeal is null) = (appeal_at_ms is null) and (appeal is null or appealed_at_ms is not null));
update challenges set kind = case when challenge #> '{task,memory}' is null then 'cpu' else 'memory' end;
alter table challenges
    alter kind set not null,
    add constraint challenges_kind check (kind in ('cpu', 'memory', 'devices', 'storage', 'software', 'transfer'));
drop index challenges_one_open;
create unique index challenges_one_open on challenges (host_id, kind) where verdict is null;
create index challenges_appealed on challenges (appealed_at_ms) where appeal is null and appealed_at_ms is not null;
create index challenges_of_leases on challenges (lease_id) where lease_id is not null;
create index challenges_kept on challenges (decided_at_ms) where forgotten_at_ms is null;
comment on column challenges.kind is 'What is tested; one of each kind may be open for a host';
comment on column challenges.cause is 'Why it was drawn';
comment on column challenges.shadow is 'Whether its verdict means nothing for the host: a test that is being tried itself';
comment on column challenges.window_id is 'The window in which it was drawn';
comment on column challenges.lease_id is 'The lease beside which it was drawn';
comment on column challenges.code is 'What came of it, for programs: passed, void, or why it failed';
comment on column challenges.decided_up_ms is 'The control clock when its verdict was written down';
comment on column challenges.forgotten_at_ms is 'When its openings were removed; verdict, times and commitments stay';
comment on column challenges.appealed_at_ms is 'When its host''s owner asked for it to be judged again';
comment on column challenges.appeal is 'What came of that';
comment on column challenges.appeal_at_ms is 'When it was judged again';

-- An opening that is a blob is kept as long as the answer that names it.
create index challenge_steps_blobs on challenge_steps ((answer #>> '{opening,blob,sha256}'))
    where (answer #>> '{opening,blob,sha256}') is not null;

alter table hosts
    add suite_cause  text constraint hosts_suite_cause check
        (suite_cause in ('enrolment', 'identity', 'random', 'window', 'lease_start', 'lease', 'lease_end', 'appeal', 'operator')),
    add suite_at_ms  bigint not null default 0,
    add retest_up_ms bigint;
comment on column hosts.suite_cause is 'Why it must prove its claims although it has proven them; none where it need not';
comment on column hosts.suite_at_ms is 'Since when it is tested, or was last; what it showed before does not count';
comment on column hosts.retest_up_ms is 'The control clock when it is tested again in any case, drawn so that nobody can foresee it';

alter table hosts
    add doubt      text constraint hosts_doubt check (doubt in ('test', 'window')),
    add refused_by uuid references challenges;
comment on column hosts.doubt is 'Whether the last of its failures that was more than trouble was in a window; none once it has proven the like';
comment on column hosts.refused_by is 'The verdict for which it was refused last';

alter table leases add probe_up_ms bigint;
comment on column leases.probe_up_ms is 'The control clock when its GPUs are tested beside the job, drawn so that nobody can foresee it';

create table device_claims (
    device    text primary key,
    host_id   uuid not null references hosts,
    since_ms  bigint not null default now_ms()
);
create index device_claims_by_host on device_claims (host_id);
comment on table device_claims is 'GPUs that were proven, and the one host each belongs to';
comment on column device_claims.device is 'Its identifier, as the vendor''s library names it; those of simulated ones begin with SIM-';
comment on column device_claims.host_id is 'Whose; another host gets it when this one has left or is silent for long, for less long where both are one miner''s';
comment on column device_claims.since_ms is 'Since when';

create table bans (
    challenge_id uuid primary key references challenges,
    host_id      uuid not null references hosts,
    hotkey       text not null,
    devices      text[] not null,
    cpu_model    text not null,
    code         text not null,
    message      text not null,
    since_ms     bigint not null default now_ms(),
    since_up_ms  bigint not null default control_ms(),
    until_up_ms  bigint not null,
    lifted_at_ms bigint,
    lifted_by    text constraint bans_lifted_by check (lifted_by in ('appeal', 'operator')),
    constraint bans_lifted check ((lifted_at_ms is null) = (lifted_by is null))
);
create index bans_by_host on bans (host_id);
create index bans_by_hotkey on bans (hotkey);
create index bans_by_device on bans using gin (devices);
comment on table bans is 'Hosts that were found to cheat, and until when neither they nor what their miner makes of them is tested again';
comment on column bans.challenge_id is 'The verdict that it came from';
comment on column bans.host_id is 'The host';
comment on column bans.hotkey is 'Its miner: no host of theirs that joined since it was tested is tested before the ban is over';
comment on column bans.devices is 'Its GPUs, those that it had proven, where it cheated with them: no host that claims one is tested either';
comment on column bans.cpu_model is 'Its processor; for people, since many machines have the same';
comment on column bans.code is 'Why, for programs';
comment on column bans.message is 'The same for people';
comment on column bans.since_ms is 'Since when';
comment on column bans.since_up_ms is 'The control clock then';
comment on column bans.until_up_ms is 'The control clock when it is over';
comment on column bans.lifted_at_ms is 'When it was taken back';
comment on column bans.lifted_by is 'By whom';

-- Bans that count against a host, those that are over too.
create function bans_of(host uuid) returns setof bans language sql stable
    begin atomic
        select b.* from hosts h join bans b
            on b.host_id = h.host_id
            or (b.hotkey = h.hotkey and h.enrolled_at_ms >= (
                select drawn_at_ms from challenges c where c.challenge_id = b.challenge_id))
            or b.devices && array(select device ->> 'uuid' from jsonb_array_elements(h.inventory -> 'devices') device)
        where h.host_id = host and b.lifted_at_ms is null;
    end;

create table transfers (
    challenge_id uuid primary key references challenges,
    source_id    uuid not null references hosts,
    key          text not null,
    bytes_per_s  bigint
);
create index transfers_by_source on transfers (source_id);
comment on table transfers is 'Transfers between hosts that are tested';
comment on column transfers.challenge_id is 'What the host that fetches is asked';
comment on column transfers.source_id is 'The host that it comes from';
comment on column transfers.key is 'What that makes the bytes of, hexadecimal; the other learns it last';
comment on column transfers.bytes_per_s is 'What came in a second, 0 where nothing came; none where nobody can say';

alter table hosts add transfer_up_ms bigint;
comment on column hosts.transfer_up_ms is 'The control clock when it fetches from another host next, drawn so that nobody can foresee it';
