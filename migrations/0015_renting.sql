-- What rented machines are paid, and why none is rented for a job.

create index leases_by_host on leases (host_id, closed_at_ms);

alter table jobs
    add not_rented text;
comment on column jobs.not_rented is 'Why no machine is rented for it, for people; counts while it is queued, none where nothing keeps one from it';

comment on column machine_attempts.call is 'What for: quote, launch, list, look or return; rent where a machine was wanted and the cloud was not asked';
