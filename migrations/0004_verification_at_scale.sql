-- Verifiers look at what can have changed, keep what somebody may still want to know, and remember who left in doubt.

create table challenge_looks (
    challenge_id uuid primary key references challenges,
    host_id      uuid not null references hosts,
    look_up_ms   bigint not null default control_ms(),
    news         bigint not null default 0
);
create index challenge_looks_due on challenge_looks (look_up_ms);
create index challenge_looks_by_host on challenge_looks (host_id);
comment on table challenge_looks is 'When verifiers look at which open challenge';
comment on column challenge_looks.challenge_id is 'A challenge without a verdict';
comment on column challenge_looks.host_id is 'Whose';
comment on column challenge_looks.look_up_ms is 'The control clock when it is looked at: when something came, or when its time is over';
comment on column challenge_looks.news is 'How often something came; who puts a look off must have seen all of it';
insert into challenge_looks (challenge_id, host_id) select challenge_id, host_id from challenges where verdict is null;

alter table challenges add sweep_at_ms bigint;
update challenges set sweep_at_ms = decided_at_ms + 3600000 where verdict is not null;
drop index challenges_kept;
create index challenges_to_sweep on challenges (sweep_at_ms) where sweep_at_ms is not null;
create index challenges_of_kind on challenges (host_id, kind, challenge_id) where verdict is not null;
create index challenges_failed on challenges (host_id, challenge_id) where code not in ('passed', 'void');
comment on column challenges.sweep_at_ms is 'When it is seen next whether it, or its openings, can go; none while it is open';

alter table hosts
    add doubted_by uuid references challenges,
    drop constraint hosts_refused_by_fkey,
    add constraint hosts_refused_by_fkey foreign key (refused_by) references challenges on delete set null;
update hosts set doubted_by = refused_by where doubt is not null;
create index hosts_refused_by on hosts (refused_by) where refused_by is not null;
create index hosts_doubted_by on hosts (doubted_by) where doubted_by is not null;
create index hosts_in_doubt on hosts (hotkey) where doubt is not null;
comment on column hosts.doubted_by is 'The verdict that the doubt came from';

-- Hosts in doubt, whether they have left or are just not heard any more: it counts against those that their miner has
-- join since, as bans do.
create function doubts_of(host uuid) returns table (host_id uuid, doubt text) language sql stable
    begin atomic
        select g.host_id, g.doubt from hosts h join hosts g on g.hotkey = h.hotkey
        where h.host_id = host and g.host_id <> h.host_id and g.doubt is not null and h.enrolled_at_ms >= (
            select drawn_at_ms from challenges c where c.challenge_id = g.doubted_by);
    end;

alter table windows add done_at_ms bigint;
update windows set done_at_ms = opened_at_ms;
comment on column windows.done_at_ms is 'When a verifier had drawn everyone into it, or had planned another because none was there to';
