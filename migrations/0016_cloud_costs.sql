-- What clouds cost stands in the ledger; clouds and what they offer rest after machines that came to nothing; and no rented
-- machine answers for another one.

alter table machines add ended_at_ms bigint;
update machines set ended_at_ms = (extract(epoch from coalesce((known #>> '{ending,at}')::timestamptz, 'epoch')) * 1000)::bigint
    where ending is not null;
alter table machines add constraint machines_ended check ((ending is null) = (ended_at_ms is null));
create index machines_ended_lately on machines (ended_at_ms);
comment on column machines.ended_at_ms is 'When it was decided that it goes back, or never was; none while it stays';

create table clouds (
    cloud         text primary key,
    looked_at_ms  bigint,
    resumed_at_ms bigint,
    stop          text
);
comment on table clouds is 'Clouds that machines are rented from, or were';
comment on column clouds.cloud is 'Its name, such as lambda';
comment on column clouds.looked_at_ms is 'When its machines were last looked after: long ago where the operator''s file does not have it any more';
comment on column clouds.stop is 'Why no machine is rented there now, for people; none where nothing keeps one from it';
comment on column clouds.resumed_at_ms is 'When an operator said that it may be rented from again; what came to nothing before does not count';

alter table ledger_postings
    drop constraint ledger_postings_kind,
    add constraint ledger_postings_kind check (kind in ('credit', 'hold', 'charge', 'refund', 'release', 'rent')),
    add machine_id uuid references machines,
    add constraint ledger_postings_rent check ((kind = 'rent') = (machine_id is not null));
create index ledger_postings_by_machine on ledger_postings (machine_id) where machine_id is not null;
comment on column ledger_postings.machine_id is 'The machine, if for one';
comment on column ledger_accounts.account is 'funding, treasury, clouds, available:CUSTOMER or held:CUSTOMER';

-- What machines have cost until now.
insert into ledger_accounts (account) select unnest(array['treasury', 'clouds'])
    where exists (select from machines where cost > 0) on conflict do nothing;
insert into ledger_postings (idempotency_key, kind, machine_id)
    -- The version before: the next write of the row posts as of this one.
    select 'rent:' || machine_id || ':' || version - 1, 'rent', machine_id from machines where cost > 0;
insert into ledger_entries (posting_id, account, amount)
    select p.posting_id, side.account, side.sign * m.cost from ledger_postings p join machines m using (machine_id)
    cross join (values ('treasury', -1), ('clouds', 1)) side (account, sign);
update ledger_accounts a set balance = balance + side.sign * (select coalesce(sum(cost), 0) from machines)
    from (values ('treasury', -1), ('clouds', 1)) side (account, sign) where a.account = side.account;

-- Other hosts in doubt that count against a host: its miner's, whenever they joined, unless it is a rented machine, and those of
-- anyone that have proven GPUs which it claims and nobody has proven since.
create or replace function doubts_of(host uuid) returns table (host_id uuid, doubt text) language sql stable
    begin atomic
        select g.host_id, g.doubt from hosts h join hosts g on g.hotkey = h.hotkey
        where h.host_id = host and g.host_id <> h.host_id and g.doubt is not null
            and not exists (select from machines m where m.host_id = h.host_id)
        union
        select g.host_id, g.doubt from hosts h
            cross join jsonb_array_elements(h.inventory -> 'devices') claimed
            join device_claims d on d.device = claimed ->> 'uuid'
            join hosts g on g.host_id = d.host_id
        where h.host_id = host and g.host_id <> h.host_id and g.doubt is not null;
    end;
