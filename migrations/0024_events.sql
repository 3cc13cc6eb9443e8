-- What went wrong with leases and hosts, whose fault it was, and what shows that.

create table events (
    event_id      uuid primary key default gen_random_uuid(),
    at_ms         bigint not null default now_ms(),
    at_up_ms      bigint not null default control_ms(),
    kind          text not null constraint events_kind check (kind in
        ('start_late', 'heartbeat_gap', 'xid', 'failed_retest', 'early_reclaim', 'below_band', 'unreachable', 'host_lost')),
    -- No foreign keys: those would lock the lease after its host, and the host in places where others come before it.
    host_id       uuid not null,
    hotkey        text not null,
    lease_id      uuid,
    challenge_id  uuid,
    xid           bigint constraint events_xid check (xid between 0 and 4294967295),
    key           text not null constraint events_key unique,
    since_ms      bigint not null,
    from_ms       bigint not null,
    until_ms      bigint not null,
    is_told       boolean not null default false,
    is_doubtful   boolean not null default false,
    detail        text not null,
    blame         text constraint events_blame check (blame in ('host', 'platform', 'customer')),
    confirmed_by  text constraint events_confirmed_by check (confirmed_by in ('report', 'retest', 'absence')),
    decided_at_ms bigint,
    signature     bytea constraint events_signature check (length(signature) = 64),
    constraint events_decided check ((decided_at_ms is null) = (blame is null) and (decided_at_ms is null) = (signature is null)
        and (decided_at_ms is not null or confirmed_by is null)),
    constraint events_span check (since_ms <= from_ms and from_ms <= until_ms),
    constraint events_of_kind check ((kind = 'xid') = (xid is not null)
        and (kind in ('failed_retest', 'below_band', 'unreachable')) = (challenge_id is not null))
);
create index events_pending on events (at_ms) where decided_at_ms is null;
create index events_by_lease on events (lease_id) where lease_id is not null;
create index events_by_host on events (host_id, at_ms, event_id);
comment on table events is 'What went wrong with leases and hosts; each is decided once, and stands then';
comment on column events.event_id is 'Random';
comment on column events.at_ms is 'When it was written down';
comment on column events.at_up_ms is 'The control clock then';
comment on column events.kind is 'What happened';
comment on column events.host_id is 'The host';
comment on column events.hotkey is 'Its miner then';
comment on column events.lease_id is 'The lease, if one suffered';
comment on column events.challenge_id is 'The test that showed it, if one did';
comment on column events.xid is 'The number of the driver''s error, if it was one';
comment on column events.key is 'What makes it the same event when it is told again';
comment on column events.since_ms is 'From when things count that explain it: when the lease was placed or last heard of, or the test was drawn';
comment on column events.from_ms is 'From when time was lost';
comment on column events.until_ms is 'Until when';
comment on column events.is_told is 'Whether the host says itself that the lease is gone';
comment on column events.is_doubtful is 'Whether what the customer ran may be why the test was failed';
comment on column events.detail is 'What happened, and once it is decided why it was decided so, for people';
comment on column events.blame is 'Whose fault it was; none before it is decided';
comment on column events.confirmed_by is 'What shows that; without it nothing follows';
comment on column events.decided_at_ms is 'When it was decided; a lease is not settled before all its events are';
comment on column events.signature is 'The market key''s, over all that others see of it';

create function events_stand() returns trigger language plpgsql as $$
begin
    -- In whose epoch it counts is written down later.
    if old.decided_at_ms is not null and (tg_op = 'DELETE' or to_jsonb(new) - 'epoch' <> to_jsonb(old) - 'epoch') then
        raise exception 'what was decided stands' using errcode = 'check_violation', constraint = 'events_stand';
    end if;
    return case when tg_op = 'DELETE' then old else new end;
end $$;
create trigger events_stand before update or delete on events for each row execute function events_stand();

create table silences (
    host_id  uuid not null,
    from_ms  bigint not null,
    until_ms bigint not null,
    resumed  text not null constraint silences_resumed check (resumed in ('same', 'agent', 'machine')),
    constraint silences_pkey primary key (host_id, from_ms),
    constraint silences_span check (from_ms < until_ms)
);
create index silences_until on silences (until_ms);
comment on table silences is 'Times for which hosts were not heard, those that are over, until no event needs them';
comment on column silences.host_id is 'The host';
comment on column silences.from_ms is 'When it was last heard';
comment on column silences.until_ms is 'When it was heard again';
comment on column silences.resumed is 'Whether it was the same agent then, another one, or even the machine had restarted';

create table pauses (
    from_ms  bigint constraint pauses_pkey primary key,
    until_ms bigint not null,
    constraint pauses_span check (from_ms < until_ms)
);
create index pauses_until on pauses (until_ms);
comment on table pauses is 'Times for which the control clock stood still, since no host could have been heard, until no event needs them';
comment on column pauses.from_ms is 'When it last went on';
comment on column pauses.until_ms is 'When it did so again';

alter table hosts add boot text constraint hosts_boot check (length(boot) <= 64);
comment on column hosts.boot is 'What it calls the time since its machine has started; none where its agent does not say';

-- What the parameters that hold say, by name; before there are any, `otherwise`.
create function event_rule(name text, otherwise bigint) returns bigint language plpgsql stable as $$
begin
    return coalesce((parameters_of(coalesce((select max(epoch) from epochs), 0)) ->> name)::bigint, otherwise);
end $$;

-- Whether so many hosts fell silent at `at`, give or take a gap, that it was not their fault: as `is_outage` in `domain/`.
create function was_outage(at bigint, gap bigint, least_ppm bigint, least_hosts bigint) returns boolean language sql stable as $$
    with fell as (
        select hotkey, falls from hosts h cross join lateral (
            select (heard_at_ms <= at + gap and now_ms() - heard_at_ms > gap) or exists (
                select from silences s where s.host_id = h.host_id and s.from_ms between at - gap and at + gap) as falls) f
        where proven is not null and state in ('ready', 'verifying', 'suspect', 'draining')
          and enrolled_at_ms <= at and heard_at_ms >= at - gap
          and (falls or not exists (
            select from silences s where s.host_id = h.host_id and s.from_ms < at - gap and s.until_ms > at + gap))),
    miners as (
        select count(*) as hosts, count(*) filter (where falls) as fallen,
            bool_or(falls) and count(*) filter (where falls) * 1000000 >= count(*) * least_ppm as falls
        from fell group by hotkey)
    select coalesce(sum(fallen) >= least_hosts and sum(fallen) * 1000000 >= sum(hosts) * least_ppm
        and count(*) filter (where falls) >= 2 and count(*) filter (where falls) * 1000000 >= count(*) * least_ppm, false)
    from miners
$$;
