-- Customers say that a result is wrong, and have a job run with several miners.

create table disputes (
    lease_id      uuid primary key references leases,
    host_id       uuid not null references hosts,
    customer_id   uuid not null references customers,
    reason        text not null,
    opened_at_ms  bigint not null default now_ms(),
    suite_at_ms   bigint,
    outcome       text constraint disputes_outcome check (outcome in ('passed', 'failed')),
    decided_at_ms bigint,
    challenge_id  uuid references challenges on delete set null,
    constraint disputes_reason check (octet_length(reason) between 1 and 500),
    constraint disputes_tested check (outcome is null or suite_at_ms is not null),
    constraint disputes_decided check ((outcome is null) = (decided_at_ms is null))
);
create index disputes_by_customer on disputes (customer_id, opened_at_ms);
create index disputes_by_host on disputes (host_id, suite_at_ms);
create index disputes_by_challenge on disputes (challenge_id) where challenge_id is not null;
create index disputes_waiting on disputes (host_id) where suite_at_ms is null;
comment on table disputes is 'Results that customers say are wrong; each has the host tested again that they came from';
comment on column disputes.lease_id is 'The attempt whose result it is';
comment on column disputes.host_id is 'Who ran it';
comment on column disputes.customer_id is 'Who paid for it';
comment on column disputes.reason is 'What the customer says is wrong; for the customer and the operator only';
comment on column disputes.opened_at_ms is 'When the customer said so';
comment on column disputes.suite_at_ms is 'When the suite began that answers it; none while it waits for one';
comment on column disputes.outcome is 'What came of that suite: whether its host passed';
comment on column disputes.decided_at_ms is 'When that was known';
comment on column disputes.challenge_id is 'The verdict that says so: the failed one, or the last of those that were passed; none where it is not kept any more';

alter table challenges drop constraint challenges_cause, add constraint challenges_cause check
    (cause in ('enrolment', 'identity', 'random', 'window', 'lease_start', 'lease', 'lease_end', 'appeal', 'operator', 'dispute'));
alter table hosts drop constraint hosts_suite_cause, add constraint hosts_suite_cause check
    (suite_cause in ('enrolment', 'identity', 'random', 'window', 'lease_start', 'lease', 'lease_end', 'appeal', 'operator', 'dispute'));

-- The jobs that are kept apart from one another.
create index jobs_apart on jobs (customer_id, (request ->> 'apart')) where request ->> 'apart' is not null;

-- The miners with whom the other jobs of a customer are, or were, that are kept apart from this one.
-- What was lost through a host has left no result that could be compared.
create function miners_apart(customer uuid, apart text, job uuid) returns setof text language sql stable
    begin atomic
        select distinct h.hotkey from jobs j join leases l using (job_id) join hosts h using (host_id)
        where j.customer_id = customer and j.request ->> 'apart' = apart and j.job_id <> job
          and coalesce(l.outcome ->> 'kind', '') not in ('host_lost', 'start_failed', 'killed');
    end;

alter table transfers add column is_reached boolean;
comment on column transfers.is_reached is 'Whether the host that fetches could connect to the one it comes from; none where nobody can say';
