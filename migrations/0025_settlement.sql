-- Epochs are settled from evidence that stands still: what each lease, miner and device did, what came of it, and the bundle
-- that shows both.

create table parameters (
    version         bigint generated always as ((body ->> 'version')::bigint) stored primary key,
    effective_epoch bigint not null generated always as ((body ->> 'effective_epoch')::bigint) stored,
    announced_ms    bigint not null generated always as ((body ->> 'announced_ms')::bigint) stored,
    body            jsonb not null
);
create index parameters_in_force on parameters (effective_epoch, version);
comment on table parameters is 'The market''s parameters, in every version there ever was; docs/settlement.md says what they mean';
comment on column parameters.version is 'Counted from 1';
comment on column parameters.effective_epoch is 'The epoch from which on it holds, until a later one does';
comment on column parameters.announced_ms is 'When it was announced';
comment on column parameters.body is 'The whole document';
create function parameters_stay() returns trigger language plpgsql as $$
begin
    raise exception 'what was announced stays' using errcode = 'check_violation', constraint = 'parameters_stay';
end $$;
create trigger parameters_stay before update or delete on parameters for each row execute function parameters_stay();

-- The document that holds in an epoch; none before the market's first.
create function parameters_of(epoch bigint) returns jsonb language sql stable
    return (select body from parameters where effective_epoch <= epoch order by effective_epoch desc, version desc limit 1);

alter table epochs
    add emission        bigint,
    add emission_source text,
    add emissions       bigint[],
    add head            text,
    add lines           bigint,
    add bundle_bytes    bigint,
    add result          jsonb,
    add settled_at_ms   bigint,
    add confirmed_at_ms bigint,
    add constraint epochs_head check ((head is null) = (lines is null) and (head is null) = (bundle_bytes is null)
        and (head is null) = (result is null) and (head is null) = (emission is null)
        and (head is null) = (emissions is null));
comment on column epochs.emission is 'What the miners'' emission of this epoch was worth, in micro-USD; this and what follows: none before it is settled';
comment on column epochs.emission_source is 'Who says so';
comment on column epochs.emissions is 'The same of epochs before, the oldest first, as in the bundle';
comment on column epochs.head is 'SHA-256 of the last line of its bundle, hexadecimal';
comment on column epochs.lines is 'Lines of its bundle';
comment on column epochs.bundle_bytes is 'Bytes of its bundle as it is kept: packed with gzip';
comment on column epochs.result is 'Sums of all miners, as in the bundle';
comment on column epochs.settled_at_ms is 'When it was settled';
comment on column epochs.confirmed_at_ms is 'When the chain showed its weights, and its bundle was free to be read';

create table bundle_pieces (
    epoch bigint not null references epochs,
    piece integer not null,
    bytes bytea not null,
    constraint bundle_pieces_pkey primary key (epoch, piece),
    constraint bundle_pieces_size check (length(bytes) <= 1048576)
);
alter table bundle_pieces alter bytes set storage external;
comment on table bundle_pieces is 'Bundles of evidence, packed with gzip, until they are too old to be kept';
comment on column bundle_pieces.epoch is 'Of which epoch';
comment on column bundle_pieces.piece is 'Counted from 0';
comment on column bundle_pieces.bytes is 'At most 1 MiB';

-- A lease is settled once, when it has closed and nothing about it is undecided.
create table unsettled_leases (
    lease_id uuid constraint unsettled_leases_pkey primary key references leases
);
comment on table unsettled_leases is 'Leases that have closed and stand in no epoch yet';
comment on column unsettled_leases.lease_id is 'The lease';
-- Epochs used to count leases part by part. What is counted in part in one that is not settled is taken back, so that no lease is
-- settled twice; of what was counted before, the rest is settled.
delete from epoch_leases e using epochs p, leases l
    where p.epoch = e.epoch and p.state = 'closed' and l.lease_id = e.lease_id and (l.state <> 'closed' or e.used_ms < l.used_ms);
create table counted_leases (
    lease_id uuid constraint counted_leases_pkey primary key references leases,
    used_ms  bigint not null,
    charged  bigint not null
);
comment on table counted_leases is 'Leases of which epochs had counted a part when leases began to be counted once and whole';
comment on column counted_leases.lease_id is 'The lease';
comment on column counted_leases.used_ms is 'How much of its use they had counted';
comment on column counted_leases.charged is 'What that had cost';
insert into counted_leases select lease_id, sum(e.used_ms)::bigint, sum(value)::bigint from epoch_leases e join leases l using (lease_id)
    group by lease_id, l.state, l.used_ms having l.state <> 'closed' or sum(e.used_ms) < l.used_ms;
insert into unsettled_leases select lease_id from leases l left join counted_leases c using (lease_id)
    where state = 'closed' and l.used_ms > 0
      and (c.lease_id is not null or not exists (select from epoch_leases e where e.lease_id = l.lease_id));
drop index leases_unsettled;
alter table leases drop column settled_ms;
-- A clock that was set back while a lease ran is no reason to settle nothing.
update leases set closed_at_ms = placed_at_ms where closed_at_ms < placed_at_ms;
-- Nor is one that was set back while an epoch was open.
update epochs e set opened_at_ms = before.ended_ms
    from (select epoch, max(greatest(opened_at_ms, closed_at_ms)) over (order by epoch rows between unbounded preceding and 1 preceding)
            as ended_ms from epochs) before
    where before.epoch = e.epoch and e.state in ('open', 'closed') and e.opened_at_ms < before.ended_ms;
update epochs set closed_at_ms = opened_at_ms where state = 'closed' and closed_at_ms < opened_at_ms;

alter table leases
    add term  text not null default 'on_demand' constraint leases_term check (term in ('on_demand', 'spot')),
    add class text;
update leases l set class = h.proven #>> array['devices', l.devices[1], 'class'] from hosts h where h.host_id = l.host_id;
update leases l set term = 'spot' from jobs j join hosts h on true
    where j.job_id = l.job_id and h.host_id = l.host_id and (j.request ->> 'term' = 'spot' or h.term = 'spot');
comment on column leases.term is 'For how long it was sold: spot where its job yields to others, or its host sold as spot';
comment on column leases.class is 'Class of its devices when it was placed; none where they had none, or there are none';

alter table epoch_leases
    add charged bigint not null default 0 constraint epoch_leases_charged check (charged >= 0),
    add related text,
    drop constraint epoch_leases_used,
    -- A million rows at once, of leases and epochs that are never removed.
    drop constraint epoch_leases_lease_id_fkey,
    drop constraint epoch_leases_epoch_fkey;
update epoch_leases e set charged = least(value, l.charged) from leases l where l.lease_id = e.lease_id;
alter table epoch_leases alter charged drop default, drop column value;
comment on table epoch_leases is 'The leases that are settled in an epoch; what else there is of them has stood still since they closed';
comment on column epoch_leases.used_ms is 'How long it ran';
comment on column epoch_leases.charged is 'What its customer has paid for it';
comment on column epoch_leases.related is 'Why its customer and its miner count as one; none where they do not';

create table epoch_miners (
    epoch          bigint not null references epochs,
    hotkey         text not null,
    verified_hosts bigint not null,
    banned         boolean not null,
    moved          bigint not null,
    used_ms        bigint not null,
    charged        bigint not null,
    constraint epoch_miners_pkey primary key (epoch, hotkey)
);
comment on table epoch_miners is 'Miners as they stood when an epoch closed';
comment on column epoch_miners.epoch is 'The epoch';
comment on column epoch_miners.hotkey is 'The miner';
comment on column epoch_miners.verified_hosts is 'Hosts of theirs that had proven what they claim';
comment on column epoch_miners.banned is 'Whether one of them was found to cheat, or sent away, at any moment of the epoch';
comment on column epoch_miners.moved is 'What they left as collateral during the epoch, less what they got back';
comment on column epoch_miners.used_ms is 'How long their leases ran that are settled in it';
comment on column epoch_miners.charged is 'What customers have paid for those';

insert into epoch_miners (epoch, hotkey, verified_hosts, banned, moved, used_ms, charged)
    select epoch, hotkey, (select count(*) from hosts h where h.hotkey = e.hotkey and proven is not null
            and state in ('ready', 'suspect', 'verifying')), false, 0, sum(used_ms)::bigint, sum(charged)::bigint
    from epoch_leases e group by epoch, hotkey;

create table epoch_classes (
    epoch          bigint not null references epochs,
    class          text not null,
    baseline       bigint,
    source         text,
    fetched_at_ms  bigint,
    devices        bigint not null,
    leased_milli   bigint not null,
    constraint epoch_classes_pkey primary key (epoch, class),
    constraint epoch_classes_baseline check ((baseline is null) = (source is null) and (baseline is null) = (fetched_at_ms is null))
);
comment on table epoch_classes is 'Classes of devices as they stood when an epoch closed';
comment on column epoch_classes.epoch is 'The epoch';
comment on column epoch_classes.class is 'The class';
comment on column epoch_classes.baseline is 'What clouds asked for one device for an hour, in micro-USD; none where nobody knew';
comment on column epoch_classes.source is 'Whose prices that rests on';
comment on column epoch_classes.fetched_at_ms is 'When the newest of those was fetched';
comment on column epoch_classes.devices is 'Devices that were seen, once for each look';
comment on column epoch_classes.leased_milli is 'Thousandths of them that were leased then';

create table idle_times (
    epoch            bigint not null references epochs,
    host_id          uuid not null references hosts,
    class            text not null,
    device_ms        bigint not null constraint idle_times_device_ms check (device_ms >= 0),
    gpu_hour         bigint not null,
    obliged_since_ms bigint,
    constraint idle_times_pkey primary key (epoch, host_id, class)
);
comment on table idle_times is 'For how long verified devices took jobs and had none';
comment on column idle_times.epoch is 'In which epoch';
comment on column idle_times.host_id is 'Of which host';
comment on column idle_times.class is 'Of which class';
comment on column idle_times.device_ms is 'Time, added up over devices';
comment on column idle_times.gpu_hour is 'The highest price that was asked meanwhile for one device of the host with its part of the cores and memory, in micro-USD an hour';
comment on column idle_times.obliged_since_ms is 'Since when the host kept its obligations when the epoch closed; none while it is open';

create table idle_look (
    only_row boolean primary key default true constraint idle_look_one_row check (only_row),
    at_ms    bigint not null default now_ms()
);
comment on table idle_look is 'When idle devices were looked at last';
comment on column idle_look.only_row is 'There is one';
comment on column idle_look.at_ms is 'Then';
insert into idle_look default values;

alter table hosts add obliged_since_ms bigint;
comment on column hosts.obliged_since_ms is 'Since when it takes every job and every test; none while it does not';
update hosts set obliged_since_ms = now_ms() where state = 'ready' and not paused;
-- Whatever takes a host out of the market, wherever it is written, ends its obligations; being ready begins them anew.
create function hosts_oblige() returns trigger language plpgsql as $$
begin
    if new.paused or new.state in ('enrolled', 'refused', 'draining', 'gone', 'banned') then
        new.obliged_since_ms = null;
    elsif new.state = 'ready' then
        new.obliged_since_ms = coalesce(new.obliged_since_ms, now_ms());
    end if;
    return new;
end $$;
create trigger hosts_oblige before insert or update of state, paused on hosts for each row execute function hosts_oblige();

create table epoch_pay (
    epoch             bigint not null references epochs,
    hotkey            text not null,
    pay               jsonb not null,
    carry             bigint not null generated always as ((pay ->> 'carry')::bigint) stored,
    collateral        bigint not null generated always as ((pay ->> 'collateral')::bigint) stored,
    demoted_until_ms  bigint not null generated always as ((pay ->> 'demoted_until_ms')::bigint) stored,
    constraint epoch_pay_pkey primary key (epoch, hotkey)
);
create index epoch_pay_by_hotkey on epoch_pay (hotkey, epoch desc);
comment on table epoch_pay is 'What came of a miner in an epoch, and with what the next one begins';
comment on column epoch_pay.epoch is 'The epoch';
comment on column epoch_pay.hotkey is 'The miner';
comment on column epoch_pay.pay is 'The miner''s line of the bundle';
comment on column epoch_pay.carry is 'What is owed beyond this epoch; below zero where the miner owes';
comment on column epoch_pay.collateral is 'What is left of the collateral';
comment on column epoch_pay.demoted_until_ms is 'Until when the miner''s hosts sell as spot';

create table lease_pay (
    lease_id  uuid constraint lease_pay_pkey primary key,
    epoch     bigint not null,
    hotkey    text not null,
    breaches  integer not null,
    adherence integer not null,
    used      bigint not null,
    bid       bigint not null,
    credit    bigint not null,
    penalty   bigint not null
);
create index lease_pay_by_miner on lease_pay (hotkey, epoch, lease_id);
comment on table lease_pay is 'What came of each lease that was settled; nothing can be settled twice';
comment on column lease_pay.lease_id is 'The lease; no foreign key, as with epoch_leases';
comment on column lease_pay.epoch is 'In which epoch';
comment on column lease_pay.hotkey is 'Whose host it was on';
comment on column lease_pay.breaches is 'Breaches of its host';
comment on column lease_pay.adherence is 'The part of what was promised that was kept, in millionths';
comment on column lease_pay.used is 'What the miner earned by it in weights, in micro-USD, as all that follows';
comment on column lease_pay.bid is 'What is paid for it beyond the baseline, in cash';
comment on column lease_pay.credit is 'What went back to its customer';
comment on column lease_pay.penalty is 'What its breaches cost the miner';

-- Evidence of hosts stands in the epoch that says so.
alter table challenges add epoch bigint references epochs;
-- Verdicts from before the epoch that is open stand in the one in which they were reached, where that is not settled yet.
update challenges c set epoch = coalesce(
        (select max(epoch) from epochs e where state = 'closed' and e.opened_at_ms <= c.decided_at_ms),
        (select max(epoch) from epochs where state not in ('open', 'closed')))
    where verdict is not null and not shadow and code <> 'void'
      and decided_at_ms < (select opened_at_ms from epochs where state = 'open');
create index challenges_unsettled on challenges (challenge_id)
    where epoch is null and verdict is not null and not shadow and code <> 'void';
create index challenges_of_epochs on challenges (epoch, challenge_id) where epoch is not null;
comment on column challenges.epoch is 'In whose bundle its verdict stands; none while it has none, or where it means nothing';
alter table events add epoch bigint references epochs;
create index events_unsettled on events (event_id) where epoch is null;
create index events_of_epochs on events (epoch, event_id) where epoch is not null;
comment on column events.epoch is 'In whose bundle it stands';

create table related (
    customer_id uuid not null references customers,
    hotkey      text not null,
    why         text not null,
    since_ms    bigint not null default now_ms(),
    constraint related_pkey primary key (customer_id, hotkey),
    constraint related_why check (octet_length(why) between 1 and 200)
);
comment on table related is 'Customers and miners that count as one: leases between them earn nothing';
comment on column related.customer_id is 'The customer';
comment on column related.hotkey is 'The miner';
comment on column related.why is 'How that is known';
comment on column related.since_ms is 'Since when it is';

create table collateral_moves (
    move_id  bigint generated always as identity primary key,
    hotkey   text not null,
    epoch    bigint not null references epochs,
    amount   bigint not null constraint collateral_moves_amount check (amount <> 0),
    key      text not null constraint collateral_moves_key unique,
    at_ms    bigint not null default now_ms()
);
create index collateral_moves_by_epoch on collateral_moves (epoch, hotkey);
comment on table collateral_moves is 'Collateral that miners left or got back; penalties stand in epoch_pay';
comment on column collateral_moves.move_id is 'Order';
comment on column collateral_moves.hotkey is 'Whose';
comment on column collateral_moves.epoch is 'The epoch that was open';
comment on column collateral_moves.amount is 'How much, in micro-USD; below zero for what was paid back';
comment on column collateral_moves.key is 'Makes it happen once';
comment on column collateral_moves.at_ms is 'When';

create table collateral_calls (
    call_id      uuid primary key,
    hotkey       text not null,
    amount       bigint not null constraint collateral_calls_amount check (amount > 0),
    called_at_ms bigint not null default now_ms(),
    due_at_ms    bigint not null,
    paid         bigint constraint collateral_calls_paid check (paid between 0 and amount),
    paid_at_ms   bigint,
    constraint collateral_calls_settled check ((paid is null) = (paid_at_ms is null))
);
create index collateral_calls_open on collateral_calls (hotkey, due_at_ms) where paid is null;
comment on table collateral_calls is 'Collateral that miners want back';
comment on column collateral_calls.call_id is 'UUID v7';
comment on column collateral_calls.hotkey is 'Whose';
comment on column collateral_calls.amount is 'How much; it backs no offer from now on';
comment on column collateral_calls.called_at_ms is 'When it was called back';
comment on column collateral_calls.due_at_ms is 'Before then it is not paid';
comment on column collateral_calls.paid is 'What was paid: less where debts were to be covered; none while it is not';
comment on column collateral_calls.paid_at_ms is 'When';

alter table ledger_postings
    drop constraint ledger_postings_kind,
    add constraint ledger_postings_kind check (kind in ('credit', 'hold', 'charge', 'refund', 'release', 'rent',
        'credit_for_breach', 'cash', 'penalty', 'collateral', 'collateral_back')),
    add hotkey text,
    add constraint ledger_postings_hotkey check (
        (kind in ('cash', 'penalty', 'collateral', 'collateral_back')) = (hotkey is not null));
create index ledger_postings_by_hotkey on ledger_postings (hotkey, posting_id desc) where hotkey is not null;
comment on column ledger_postings.hotkey is 'The miner it touches, if one';
alter table ledger_accounts
    drop constraint ledger_accounts_funds,
    add hotkey text,
    add constraint ledger_accounts_funds check (customer_id is null and hotkey is null or balance >= 0);
comment on column ledger_accounts.account is 'funding, treasury, clouds, available:CUSTOMER, held:CUSTOMER, payable:HOTKEY or collateral:HOTKEY';
comment on column ledger_accounts.hotkey is 'Whose, if a miner''s';
comment on column ledger_accounts.balance is 'Sum of its entries; never negative for customers and miners';

-- What an hour of all that a host claims costs, in micro-USD; none where it was not heard yet.
create function host_hourly(h hosts) returns numeric language sql immutable
    return h.gpu_hour::numeric * jsonb_array_length(h.inventory -> 'devices')
        + h.vcpu_hour::numeric * (h.inventory ->> 'milli_cpu')::bigint / 1000
        + h.gib_hour::numeric * (h.inventory ->> 'memory')::bigint / 1073741824;

-- What miners' hosts are sold as: not for longer than their owner offers, and as spot while the miner is new or demoted, or as far as
-- collateral does not cover what their offers cost for the time that it must.
create view offers as
    with terms as materialized (
        select coalesce((body ->> 'probation_ms')::bigint, 0) as probation_ms, coalesce((body ->> 'collateral_ms')::bigint, 0) as collateral_ms,
            settled.epoch
        from (select parameters_of((select max(epoch) from epochs)) as body) document,
             (select max(epoch) as epoch from epochs where head is not null) settled),
    offered as (
        select h.host_id, h.hotkey, h.term, h.enrolled_at_ms,
            exists (select from machines m where m.host_id = h.host_id) as is_rented,
            case when h.term = 'on_demand' and h.state in ('ready', 'suspect', 'verifying') then host_hourly(h) end as hourly
        from hosts h),
    backed as (
        select o.*, min(enrolled_at_ms) over (partition by hotkey) as since_ms,
            sum(hourly) filter (where not is_rented) over (partition by hotkey order by host_id) as all_hourly
        from offered o)
    select b.host_id, b.hotkey, b.term as offered,
        case
            when b.term = 'spot' or b.is_rented then null
            when b.since_ms + t.probation_ms > now_ms() then 'probation'
            when p.demoted_until_ms > now_ms() then 'demoted'
            when b.all_hourly * t.collateral_ms / 3600000 > coalesce(a.balance, 0) - coalesce(c.called, 0) then 'collateral'
        end as spot_because
    from backed b cross join terms t
    left join epoch_pay p on p.epoch = t.epoch and p.hotkey = b.hotkey
    left join ledger_accounts a on a.account = 'collateral:' || b.hotkey
    left join (select hotkey, sum(amount) as called from collateral_calls where paid is null group by hotkey) c
        on c.hotkey = b.hotkey;
comment on view offers is 'What hosts are sold as';
comment on column offers.host_id is 'The host';
comment on column offers.hotkey is 'Its miner';
comment on column offers.offered is 'As what its owner offers it';
comment on column offers.spot_because is 'Why it is sold as spot although it is offered on demand: probation, demoted or collateral; none where it is not';
