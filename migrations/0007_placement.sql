-- Gangs as they were formed, and notice to leases that yield.

alter table jobs
    add gang uuid;
comment on column jobs.gang is 'The first job of the gang that it starts with; none where it starts alone';
-- Those that wait become the gangs that they would have been: by age, so many as each of them says.
update jobs set gang = formed.gang
from (select job_id, first_value(job_id) over (partition by customer_id, name, size, turn / size order by job_id) as gang
      from (select job_id, customer_id, request ->> 'group' as name, (request ->> 'gang')::bigint as size,
                   row_number() over (partition by customer_id, request ->> 'group', request ->> 'gang' order by job_id) - 1 as turn
            from jobs where state = 'queued' and attempts = 0 and request ->> 'gang' is not null) waiting) formed
where formed.job_id = jobs.job_id;
create index jobs_forming on jobs (customer_id, gang) where state = 'queued' and gang is not null;

alter table leases
    add notice_up_ms bigint,
    drop constraint leases_stop_reason,
    add constraint leases_stop_reason check
        (stop_reason in ('cancelled', 'start_timeout', 'run_timeout', 'spend_cap', 'preempted'));
comment on column leases.notice_up_ms is 'When it was told that it ends for another job, on the control clock; none where it was not';
