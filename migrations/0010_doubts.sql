-- Doubt follows a miner and its GPUs, whatever names they have; hosts that are never free are tested all the same, or it is said
-- that they were not.

alter table hosts add tested_at_ms bigint;
update hosts set tested_at_ms = enrolled_at_ms where exists (select from challenges c where c.host_id = hosts.host_id);
comment on column hosts.tested_at_ms is 'When it was first tested since it joined; until then it is a name and no more';

alter table hosts
    add strained       integer not null default 0,
    add strained_up_ms bigint;
comment on column hosts.strained is 'How often in a row it could not show its GPUs beside jobs, which may be those jobs'' doing';
comment on column hosts.strained_up_ms is 'The control clock when the first of these tests ended';

-- Most hosts of a market just take jobs: each look reads those that are tested, or wait for it, and no others.
create index hosts_verifying on hosts (host_id) where state = 'verifying';
create index hosts_refused on hosts (retry_up_ms) where state = 'refused';

alter table disputes
    drop constraint disputes_outcome,
    add constraint disputes_outcome check (outcome in ('passed', 'failed', 'untested')),
    drop constraint disputes_tested,
    add constraint disputes_tested check (outcome is null or outcome = 'untested' or suite_at_ms is not null);
comment on column disputes.outcome is 'What came of that suite: whether its host passed; or that there was none';

-- Bans that count against a host, those that are over too: its own, those of its miner if it joined since that test or was not
-- tested before the ban, and those that took GPUs along which it claims.
create or replace function bans_of(host uuid) returns setof bans language sql stable
    begin atomic
        select b.* from hosts h join bans b
            on b.host_id = h.host_id
            or (b.hotkey = h.hotkey and (h.tested_at_ms is null or h.tested_at_ms >= b.since_ms or h.enrolled_at_ms >= (
                select drawn_at_ms from challenges c where c.challenge_id = b.challenge_id)))
            or b.devices && array(select device ->> 'uuid' from jsonb_array_elements(h.inventory -> 'devices') device)
        where h.host_id = host and b.lifted_at_ms is null;
    end;
comment on column bans.hotkey is 'Its miner: no host of theirs that joined since it was tested, or was not tested before the ban, is tested before that is over';

-- Other hosts in doubt that count against a host: its miner's, whenever they joined, and those of anyone that have
-- proven GPUs which it claims and nobody has proven since.
create or replace function doubts_of(host uuid) returns table (host_id uuid, doubt text) language sql stable
    begin atomic
        select g.host_id, g.doubt from hosts h join hosts g on g.hotkey = h.hotkey
        where h.host_id = host and g.host_id <> h.host_id and g.doubt is not null
        union
        select g.host_id, g.doubt from hosts h
            cross join jsonb_array_elements(h.inventory -> 'devices') claimed
            join device_claims d on d.device = claimed ->> 'uuid'
            join hosts g on g.host_id = d.host_id
        where h.host_id = host and g.host_id <> h.host_id and g.doubt is not null;
    end;
