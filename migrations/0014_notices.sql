-- To whom a lease yields: a notice ends with the wait that it is for.

alter table leases
    add notice_for uuid;
comment on column leases.notice_for is 'The first job of those that get its place; none where it was not told to yield';
